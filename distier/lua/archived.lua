-- flags: allow-oom
-- Commits a write-back: the version is archived now, so its copies in Redis may expire.
-- KEYS    1..9 the shard, 10 record, 11 frame
-- ARGV    id, write id, version, archived_bytes
-- RETURNS {'OK'} | {'ALREADY'} | {'CHANGED'}
-- KEEPS   only the archived version becomes clean; a tombstone expires only after its object is in the archive
local refused = refuse()
if refused then return refused end
local id, record = ARGV[1], KEYS[10]
local old = placed(record)
-- the same write, sent again after a loss of data, has another position than its object
if old.write_id ~= ARGV[2] or old.version ~= ARGV[3] then return {'CHANGED'} end
if old.clean then return {'ALREADY'} end
count(old, -1)
call('ZREM', DIRTY, id)
if old.tier == 'deleted' then
  -- not `seen`: the tombstone may be of an older epoch, and the archive may have a later version
  call('HSET', record, 'clean', '1')
  call('PEXPIRE', record, TOMBSTONE_TTL_MS)
else
  local new = {tier = old.tier, tokens = old.tokens, bytes = old.bytes, clean = true, frame_bytes = old.frame_bytes,
    archived_bytes = tonumber(ARGV[4])}
  count(new, 1)
  call('HSET', record, 'clean', '1', 'archived_bytes', ARGV[4])
  if old.tier == 'warm' then keep_frame(id, KEYS[11], true, now_ms()) end
end
settle()
emit(id, old.tier, old.tier, 'archive', old.version)
return {'OK'}
