-- flags: allow-oom
-- Opens a shard: takes its limits, and creates it where it is new and an epoch is given.
-- KEYS    1..9 the shard
-- ARGV    layout, shards, epoch to install ('0': only look), then name, value, 'set' (the operator says so) or
--         'default' (only where none is stored) for each limit
-- RETURNS {'OK', epoch, shards} | {'NEW'} | {'MISMATCH', what, stored}
-- KEEPS   an epoch that is installed is never replaced here; `shards` never changes
local stored = call('HMGET', EPOCH, 'layout', 'shards', 'epoch')
if stored[1] and stored[1] ~= ARGV[1] then return {'MISMATCH', 'layout', stored[1]} end
if stored[2] and stored[2] ~= ARGV[2] then return {'MISMATCH', 'shards', stored[2]} end
if not stored[3] then
  if ARGV[3] == '0' then return {'NEW'} end
  call('HSET', EPOCH, 'layout', ARGV[1], 'shards', ARGV[2], 'epoch', ARGV[3], 'ver', 0, 'created', now_ms())
  stored[3] = ARGV[3]
end
for i = 4, #ARGV, 3 do
  call(ARGV[i + 2] == 'set' and 'HSET' or 'HSETNX', LIMITS, ARGV[i], ARGV[i + 1])
end
return {'OK', stored[3], ARGV[2]}
