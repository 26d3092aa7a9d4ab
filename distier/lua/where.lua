-- flags: no-writes
-- Returns a consistent view of a module's placement. Does not count as a use.
-- KEYS    1..9 the shard, 10 record, 11 frame
-- ARGV    id
-- RETURNS {} | {fields of the record without content as a flat list}, last use, due, uses, dirty since, pinned until
--         ('' if absent), PTTL of the frame
-- KEEPS   writes nothing
local fields = {'tier', 'epoch', 'ver', 'tok', 'seen', 'bytes', 'tokens', 'counter', 'sha256', 'type', 'clean', 'archived_key',
  'archived_bytes', 'codec', 'frame_bytes', 'created', 'updated', 'ttl'}
local values = call('HMGET', KEYS[10], unpack(fields))
if not values[1] or values[1] == 'deleted' then return {} end
local record = {}
for i, name in ipairs(fields) do
  if values[i] then record[#record + 1] = name record[#record + 1] = values[i] end
end
local id = ARGV[1]
local scores = {record}
for i, zset in ipairs({HOT, WARM, USES, DIRTY, PINS}) do scores[i + 1] = call('ZSCORE', zset, id) or '' end
scores[7] = call('PTTL', KEYS[11])
return scores
