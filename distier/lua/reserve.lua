-- flags: allow-oom
-- Takes the next place in the order for a write that goes to the archive before it is applied.
-- KEYS    1..9 the shard, 10 record
-- ARGV    expected ('' any, '-' none, 'epoch-ver'), tok
-- RETURNS {'OK', epoch, ver, now_ms, created_ms, replication id} | {'CONFLICT', version} | {'UNVERIFIED'} | {'BUSY'} where another
--         conditional write is under way, and has not been for 2 s
-- KEEPS   a place is given once; a conditional write keeps others from coming before it (`passed`)
local refused = refuse()
if refused then return refused end
local old = placed(KEYS[10])
local conflict = unexpected(old, KEYS[10], ARGV[1])
if conflict then return conflict end
local now, epoch = now_ms(), call('HGET', EPOCH, 'epoch')
if ARGV[1] ~= '' then
  local place, at, tok = reservation(old, epoch)
  if place > 0 and tok ~= ARGV[2] and now - at < 2000 then return {'BUSY'} end
end
local created = old.tier ~= 'none' and old.tier ~= 'deleted' and call('HGET', KEYS[10], 'created') or now
local ver = call('HINCRBY', EPOCH, 'ver', 1)
if ARGV[1] ~= '' then
  if old.tier == 'none' then bury(KEYS[10], 0, 0, '', now) end -- known not to exist
  call('HSET', KEYS[10], 'reserved', string.format('%s-%.0f-%.0f-%s', epoch, ver, now, ARGV[2]))
end
return {'OK', epoch, ver, tostring(now), tostring(created), replid()}
