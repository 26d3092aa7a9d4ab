-- flags: allow-oom
-- Takes the next position in the order for a write that goes to the archive before it is applied, and holds it.
-- KEYS    1..9 the shard, 10 record
-- ARGV    expected ('' any, '-' none, 'epoch-ver'), tok ('': holds nothing), the holder that the caller gives up on ('' none)
-- RETURNS {'OK', epoch, ver, now_ms, created_ms, replication id, '1' if the module exists} | {'CONFLICT', version} | {'UNVERIFIED'}
--         | {'BUSY', holder} where another write holds a position
-- KEEPS   a position is given once; who holds one keeps others from being applied or adopted before it (`not_applicable`)
local refused = refuse()
if refused then return refused end
local record, expected, tok = KEYS[10], ARGV[1], ARGV[2]
local old = placed(record)
if not is_checked(record) then return {'UNVERIFIED'} end -- an older version that it keeps from being adopted must be here already
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
