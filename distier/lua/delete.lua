-- flags: allow-oom
-- Deletes a module with all its copies in Redis. A dirty tombstone stays until the archive has one too. A delete that is already
-- archived at its reserved position leaves a clean tombstone for a while.
-- KEYS    1..9 the shard, 10 record, 11 frame, 12 `done`
-- ARGV    id, write id, expected ('' any, 'epoch-ver'; then '/' and the dead holder of a position to ignore), reserved epoch,
--         reserved ver ('' both: not archived), '' or a version from before the write was first sent (`maybe_applied`)
-- RETURNS {'OK', version} | {'REPLAYED', version} | {'GONE', version} if others had deleted it, or it has expired | {'MISSING'}
--         | {'CONFLICT', version} | {'UNVERIFIED'} | {'FENCED'} | {'SUPERSEDED', version, '1' if others have deleted it since} | {'UNHELD'}
--         | {'BUSY', holder} | {'UNKNOWN', version}
-- KEEPS   the tombstone is after every earlier version in the order; a write id is applied once
local refused = refuse()
if refused then return refused end
local id, write_id, record = ARGV[1], ARGV[2], KEYS[10]
local old, now, clean = placed(record), now_ms(), ARGV[4] ~= ''
is_listed(id)
local done = call('HGET', KEYS[12], write_id)
if done then
  call('HSET', KEYS[12], write_id, done) -- a write, so that WAIT covers the first one
  return {string.sub(done, -1) == '-' and 'GONE' or 'REPLAYED', string.match(done, '^%d+-%d+')}
end
local epoch, ver, expected = current_epoch, ARGV[5], ARGV[3]
local no = refuse_write(old, record, write_id, expected, ARGV[4], ver, ARGV[6])
if no then return no end
local exists = old.tier ~= 'none' and old.tier ~= 'deleted'
if not exists and not clean then return {'MISSING'} end
local reservation = not clean and expected == '' and kept_reservation(old, epoch, true)

if not clean then ver = call('HINCRBY', EPOCH, 'ver', 1) end
local version, expired = epoch .. '-' .. ver, exists and is_expired(record, now)
count(old, -1)
count({tier = 'deleted', bytes = 0, clean = clean}, 1)
call('ZREM', PINS, id)
local dirty_since = call('ZSCORE', DIRTY, id)
forget(id, record, KEYS[11])
unlist_id(id)
if clean then bury(record, epoch, ver, write_id, now)
else
  call('HSET', record, 'tier', 'deleted', 'epoch', epoch, 'ver', ver, 'tok', write_id, 'seen', epoch, 'bytes', 0, 'clean', '0',
    'updated', now)
  if reservation then call('HSET', record, 'reserved', reservation) end
  call('ZADD', DIRTY, dirty_since or score(), id)
end
if exists then emit(id, old.tier, 'deleted', expired and 'ttl' or 'delete', version) end
exists = exists and not expired
remember(KEYS[12], write_id, exists and version or version .. '-', ver)
settle()
return {exists and 'OK' or 'GONE', version}
