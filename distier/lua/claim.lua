-- flags: allow-oom
-- Acquires or renews the lease of a shard for a worker.
-- KEYS    1..9 the shard, 10 the lease
-- ARGV    the worker, duration in ms
-- RETURNS {'OK', fence} | {'HELD', the lease: `<fence>:<worker>`}
-- KEEPS   one worker at a time; the fence of each new holder is greater than all earlier ones in this epoch
local refused = refuse()
if refused then return refused end
local held = call('GET', KEYS[10])
local fence, holder = string.match(held or '', '^(%d+):(.*)$')
if held and holder ~= ARGV[1] then
  -- no lease is longer than that, so this one is from before the server's clock was set back
  if call('PTTL', KEYS[10]) > tonumber(ARGV[2]) then call('PEXPIRE', KEYS[10], ARGV[2]) end
  return {'HELD', held}
end
if not held then fence = call('HINCRBY', EPOCH, 'fence', 1) end
call('SET', KEYS[10], fence .. ':' .. ARGV[1], 'PX', ARGV[2])
return {'OK', tonumber(fence)}
