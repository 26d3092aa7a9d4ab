-- flags: allow-oom
-- Reserves the next position for a write that is archived before it is applied.
-- KEYS    1..9 the shard, 10 record
-- ARGV    expected ('' any, '-' none, 'epoch-ver'), write id ('': reserves nothing), the dead holder to ignore ('' none), the
--         version `epoch-ver` of an object of this write that was archived in an older epoch ('' none)
-- RETURNS {'OK', epoch, ver, now_ms, created_ms, replication id, '1' if the module exists} | {'CONFLICT', version} | {'UNVERIFIED'}
--         | {'BUSY', holder} if another write holds a position | {'REPLAYED', version, tier} if that object was adopted
--         | {'UNHELD'} if it is unknown whether it was: the record is later, or this is still the older epoch
-- KEEPS   a position is assigned once; its holder prevents others from being applied or adopted before it (`not_applicable`).
--         Whether an earlier object was adopted is checked in the same step: a later check may reach a server that lost that
local refused = refuse()
if refused then return refused end
local record, expected, write_id = KEYS[10], ARGV[1], ARGV[2]
local old = placed(record)
if not is_checked(record) then return {'UNVERIFIED'} end -- the reservation prevents adoption, so older versions must have been adopted already
if ARGV[4] ~= '' then
  local e, v = string.match(ARGV[4], '^(%d+)-(%d+)$')
  e, v = tonumber(e), tonumber(v)
  if string.sub(old.write_id, 1, 8) == string.sub(write_id, 1, 8) then return {'REPLAYED', old.version, old.tier} end
  if comes_after(old, e, v) or tonumber(current_epoch) <= e then return {'UNHELD'} end
end
local no = unexpected(old, record, expected) or write_id ~= '' and busy(old, current_epoch, write_id, ARGV[3])
if no then return no end
local now, epoch = now_ms(), current_epoch
local exists = old.tier ~= 'none' and old.tier ~= 'deleted' and not is_expired(record, now)
local created = exists and old.created or now
local ver = call('HINCRBY', EPOCH, 'ver', 1)
if write_id ~= '' then
  if old.tier == 'none' then bury(record, 0, 0, '', now) end -- records that the module does not exist
  call('HSET', record, 'reserved', string.format('%s-%.0f-0-%s', epoch, ver, write_id))
end
return {'OK', epoch, ver, tostring(now), tostring(created), replid(), exists and '1' or '0'}
