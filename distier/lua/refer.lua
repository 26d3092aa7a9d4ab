-- flags: allow-oom
-- Says where the archive has versions now: in a pack, or under names of their own.
-- KEYS    1..9 the shard, then the record of each id
-- ARGV    for each id: id, first 8 characters of the write id, version, archived_key ('' its own name), archived_bytes
-- RETURNS {'OK', number of records that changed}
-- KEEPS   only a record of that version changes, and only if it is clean; content, tier and order stay
local refused = refuse()
if refused then return refused end
for i = 10, #KEYS do placed(KEYS[i]) end -- a wrong type fails here, before the first write
local changed = 0
for i = 10, #KEYS do
  local a, record = 5 * (i - 10), KEYS[i]
  local old = placed(record)
  if old.clean and old.tier ~= 'deleted' and old.version == ARGV[a + 3]
    and string.sub(old.write_id, 1, 8) == ARGV[a + 2] then
    count(old, -1)
    old.archived_bytes = tonumber(ARGV[a + 5])
    count(old, 1)
    call('HSET', record, 'archived_bytes', ARGV[a + 5])
    if ARGV[a + 4] == '' then call('HDEL', record, 'archived_key') else call('HSET', record, 'archived_key', ARGV[a + 4]) end
    emit(ARGV[a + 1], old.tier, old.tier, 'pack', old.version)
    changed = changed + 1
  end
end
settle()
return {'OK', changed}
