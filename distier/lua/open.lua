-- flags: allow-oom
-- Opens a shard: takes its limits, and installs an epoch where the shard has none for this incarnation of the server.
-- KEYS    1..9 the shard
-- ARGV    layout, shards, epoch to install ('0': only look), replid that it was claimed for, '1' if the archive holds no
--         module, a token: that of the look before the claim, or to look under, then name, value, 'set' (the operator says so) or
--         'default' (only where none is stored) for each limit
-- RETURNS {'OK', epoch, verified, ver} | {'UNCLAIMED', replid, token of this look ('' where that is lost), epoch} | {'MISMATCH', what, stored}
-- KEEPS   an epoch is installed once, in the incarnation that it was claimed for, and is greater than the one before, also where FLUSHALL
--         has made the server forget that one: it takes the token of the look along; `shards` never changes
local stored, incarnation = call('HMGET', EPOCH, 'layout', 'shards', 'epoch', 'replid', 'verified'), replid()
if stored[1] and stored[1] ~= ARGV[1] then return {'MISMATCH', 'layout', stored[1]} end
if stored[2] and stored[2] ~= ARGV[2] then return {'MISMATCH', 'shards', stored[2]} end
local epoch, verified = tonumber(stored[3] or 0), tonumber(stored[5] or 0)
if epoch == 0 or incarnation ~= '' and stored[4] ~= incarnation then
  local claimed = tonumber(ARGV[3])
  local opening = call('HGET', EPOCH, 'opening') or ''
  if claimed <= epoch or ARGV[4] ~= incarnation or opening ~= ARGV[6] then
    if claimed == 0 and opening == '' and ARGV[6] ~= '' then call('HSET', EPOCH, 'opening', ARGV[6]) opening = ARGV[6] end
    return {'UNCLAIMED', incarnation, opening, epoch}
  end
  verified = ARGV[5] == '1' and claimed or verified
  local now = now_ms()
  call('HSET', EPOCH, 'layout', ARGV[1], 'shards', ARGV[2], 'epoch', claimed, 'replid', incarnation, 'verified', verified,
    'since', now)
  -- Where the archive holds modules, the shard is older than these keys: they were lost, and nobody knows when it was made.
  if ARGV[5] == '1' then call('HSETNX', EPOCH, 'created', now) end
  call('HSETNX', EPOCH, 'ver', 0)
  call('HDEL', EPOCH, 'opening')
  if epoch > 0 or verified < claimed then emit('', tostring(epoch), tostring(claimed), 'epoch', claimed .. '-0') end
  epoch = claimed
end
-- Writes only what differs: a user who may not write can open a shard that is as it should be.
for i = 7, #ARGV, 3 do
  local kept = call('HGET', LIMITS, ARGV[i])
  if not kept or ARGV[i + 2] == 'set' and kept ~= ARGV[i + 1] then call('HSET', LIMITS, ARGV[i], ARGV[i + 1]) end
end
return {'OK', epoch, verified, call('HGET', EPOCH, 'ver') or '0'}
