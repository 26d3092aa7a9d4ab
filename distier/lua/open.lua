-- flags: allow-oom
-- Opens a shard: sets its limits, and installs an epoch if the shard has none for this incarnation of the server.
-- KEYS    1..9 the shard
-- ARGV    layout, shards, epoch to install ('0': only check), replication id for which it was claimed, '1' if the archive has no
--         module, a random opening id (of this check, or of the check before the claim), eviction policy ('': as stored), then for each limit name, value and 'set'
--         (configured by the operator) or 'default' (only if none is stored)
-- RETURNS {'OK', epoch, verified, ver, '1' if the order of eviction is that of ranks, dictionary ('': none)} | {'UNCLAIMED', replication id, opening id ('' if it is lost), epoch}
--         | {'MISMATCH', what, stored}
-- KEEPS   an epoch is installed once, in the incarnation for which it was claimed, and is greater than the previous one, even if a
--         FLUSHALL deleted that: the claim must bring the opening id of its check; `shards` never changes
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
  -- If the archive has modules, the shard is older than these keys: they were lost, and its creation time is unknown.
  if ARGV[5] == '1' then call('HSETNX', EPOCH, 'created', now) end
  call('HSETNX', EPOCH, 'ver', 0)
  call('HDEL', EPOCH, 'opening')
  if epoch > 0 or verified < claimed then emit('', tostring(epoch), tostring(claimed), 'epoch', claimed .. '-0') end
  epoch = claimed
end
-- Writes only limits that differ, so that a user without write permission can open an unchanged shard.
for i = 8, #ARGV, 3 do
  local kept = call('HGET', LIMITS, ARGV[i])
  if not kept or ARGV[i + 2] == 'set' and kept ~= ARGV[i + 1] then call('HSET', LIMITS, ARGV[i], ARGV[i + 1]) end
end
-- Another eviction policy has another order. `rank` builds it in steps; an empty shard needs none.
if ARGV[7] ~= '' and ARGV[7] ~= (call('HGET', EPOCH, 'eviction') or 'lru') then
  call('HSET', EPOCH, 'eviction', ARGV[7])
  call('HDEL', EPOCH, 'ranked', 'hot_floor', 'warm_floor')
  call('UNLINK', HOT_RANK, WARM_RANK, ROOT .. 'ghosts:hot', ROOT .. 'ghosts:warm')
  if ARGV[7] ~= 'lru' and call('ZCARD', HOT) + call('ZCARD', WARM) == 0 then call('HSET', EPOCH, 'ranked', 1) end
end
local e = call('HMGET', EPOCH, 'ver', 'eviction', 'ranked', 'dictionary')
return {'OK', epoch, verified, e[1] or '0', (e[2] or 'lru') ~= 'lru' and e[3] or '0', e[4] or ''}
