-- flags:
-- Ranks modules of hot and warm for the eviction policy of the shard, after it was changed.
-- KEYS    1..9 the shard, then record and frame of each id
-- ARGV    ids
-- RETURNS {'OK', number of modules that were ranked, '1' once all of hot and warm are, else '0'}
-- KEEPS   a module that has a rank keeps it; a set of ranks has only modules of its tier
local refused = refuse()
if refused then return refused end
if not policy then return {'OK', 0, '1'} end
local now, done, records = now_ms(), 0, {}
for i = 1, #ARGV do records[i] = placed(KEYS[8 + 2 * i]) end -- a wrong type fails here, before the first write
for i, id in ipairs(ARGV) do
  local r = records[i]
  local rank = r.tier == 'hot' and HOT_RANK or r.tier == 'warm' and WARM_RANK
  if rank and not call('ZSCORE', rank, id) then
    set_rank(rank, id, r.tier == 'hot' and r.tokens or 1, r.tier == 'hot' and r.bytes or r.frame_bytes)
    done = done + 1
  end
end
-- each set of ranks is a part of its tier's set, so equal sizes mean equal sets
if not ranked and call('ZCARD', HOT_RANK) == call('ZCARD', HOT) and call('ZCARD', WARM_RANK) == call('ZCARD', WARM) then
  call('HSET', EPOCH, 'ranked', 1)
  ranked = '1'
end
return {'OK', done, ranked and '1' or '0'}
