-- flags: allow-oom
-- Takes the next position in the order for a write that goes to the archive before it is applied, and holds it.
-- KEYS    1..9 the shard, 10 record
-- ARGV    expected ('' any, '-' none, 'epoch-ver'), tok ('': holds nothing), the holder that the caller gives up on ('' none),
--         the version `epoch-ver` under which an older epoch's object of this write is in the archive already ('' none)
-- RETURNS {'OK', epoch, ver, now_ms, created_ms, replication id, '1' if the module exists} | {'CONFLICT', version} | {'UNVERIFIED'}
--         | {'BUSY', holder} where another write holds a position | {'REPLAYED', version, tier} where somebody adopted that object
--         | {'UNHELD'} where it is not known whether somebody did: the record is newer, or this is still the older epoch
-- KEEPS   a position is given once; who holds one keeps others from being applied or adopted before it (`not_applicable`). That
--         an earlier object was not adopted is seen in the same step: afterwards another server may be asked, which lost that
local refused = refuse()
if refused then return refused end
local record, expected, tok = KEYS[10], ARGV[1], ARGV[2]
local old = placed(record)
if not is_checked(record) then return {'UNVERIFIED'} end -- an older version that it keeps from being adopted must be here already
if ARGV[4] ~= '' then
  local e, v = string.match(ARGV[4], '^(%d+)-(%d+)$')
  e, v = tonumber(e), tonumber(v)
  if string.sub(old.tok, 1, 8) == string.sub(tok, 1, 8) then return {'REPLAYED', old.version, old.tier} end
  if comes_after(old, e, v) or tonumber(current_epoch) <= e then return {'UNHELD'} end
end
local no = unexpected(old, record, expected) or tok ~= '' and busy(old, current_epoch, tok, ARGV[3])
if no then return no end
local now, epoch, exists = now_ms(), current_epoch, old.tier ~= 'none' and old.tier ~= 'deleted'
local created = exists and old.created or now
local ver = call('HINCRBY', EPOCH, 'ver', 1)
if tok ~= '' then
  if old.tier == 'none' then bury(record, 0, 0, '', now) end -- known not to exist
  call('HSET', record, 'reserved', string.format('%s-%.0f-0-%s', epoch, ver, tok))
end
return {'OK', epoch, ver, tostring(now), tostring(created), replid(), exists and '1' or '0'}
