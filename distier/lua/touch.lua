-- flags:
-- Records uses: updates the order of eviction and the counts, and renews the TTL of warm frames.
-- KEYS    1..9 the shard, then record and frame of each id
-- ARGV    id and number of uses of each
-- RETURNS {'OK', count of each; -1 if the module does not exist}
-- KEEPS   no record is written, so that uses never invalidate a near cache; dirty frames get no TTL; at maxmemory the script is
--         refused, because it may add to `uses`; uses are recorded again once there is room
local refused = refuse()
if refused then return refused end
local now, tiers, counts, reads, tokens = now_ms(), {}, {}, {}, {}
for i = 1, #ARGV / 2 do tiers[i] = call('HMGET', KEYS[8 + 2 * i], 'tier', 'tokens', 'bytes') end -- a wrong type fails here
for i, r in ipairs(tiers) do
  local id, uses, frame, tier = ARGV[2 * i - 1], ARGV[2 * i], KEYS[9 + 2 * i], r[1]
  if tier and tier ~= 'deleted' then
    counts[i] = call('ZINCRBY', USES, uses, id)
    reads[tier], tokens[tier] = (reads[tier] or 0) + uses, (tokens[tier] or 0) + uses * (r[2] or 0)
    if tier == 'hot' then
      call('ZADD', HOT, 'XX', score(), id)
      set_rank(HOT_RANK, id, r[2] or 0, r[3] or 0, uses)
    elseif tier == 'warm' and call('EXISTS', frame) == 1 then
      keep_frame(id, frame, not call('ZSCORE', DIRTY, id), now, uses)
    end
  else
    counts[i] = '-1'
  end
end
for tier, n in pairs(reads) do note_reads(tier, string.format('%.0f', n), string.format('%.0f', tokens[tier])) end
if recording then record_uses(now, unpack(ARGV)) end
-- Counts are halved after some uses of each module in Redis, too: without that, modules that were in use once stay for long (unless
-- the policy has another way). A large set takes too long here; the worker halves it (`age`). It may be forbidden to this user, and
-- is a hint.
local sampled = 0
for i = 2, #ARGV, 2 do sampled = sampled + tonumber(ARGV[i]) end
if (not policy or halves_ranks()) and call('HINCRBY', EPOCH, 'sampled', sampled) >= math.max(1000, 10 * (call('ZCARD', HOT) + call('ZCARD', WARM)))
  and call('ZCARD', USES) <= 4096 then
  call('HSET', EPOCH, 'sampled', 0)
  halve_uses(redis.pcall)
end
return {'OK', counts}
