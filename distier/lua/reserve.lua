-- flags: allow-oom
-- Takes the next place in the order for a write that goes to the archive before it is applied.
-- KEYS    1..9 the shard, 10 record
-- ARGV    expected ('' any, '-' none, 'epoch-ver'), tok, '1' to hold the place where nothing is expected, too
-- RETURNS {'OK', epoch, ver, now_ms, created_ms, replication id} | {'CONFLICT', version} | {'UNVERIFIED'} | {'BUSY'} where another
--         write has held a place for less than 2 s
-- KEEPS   a place is given once; who holds one keeps others from coming before it (`passed`)
local refused = refuse()
if refused then return refused end
local old = placed(KEYS[10])
local conflict = unexpected(old, KEYS[10], ARGV[1])
if conflict then return conflict end
local now, epoch = now_ms(), current_epoch
local hold = ARGV[1] ~= '' or ARGV[3] == '1' and is_checked(KEYS[10])
if hold then
  local place, at, tok = reservation(old, epoch)
  if place > 0 and tok ~= ARGV[2] and now - at < 2000 then return {'BUSY'} end
end
local created = old.tier ~= 'none' and old.tier ~= 'deleted' and call('HGET', KEYS[10], 'created') or now
local ver = call('HINCRBY', EPOCH, 'ver', 1)
if hold then
  if old.tier == 'none' then bury(KEYS[10], 0, 0, '', now) end -- known not to exist
  call('HSET', KEYS[10], 'reserved', string.format('%s-%.0f-%.0f-%s', epoch, ver, now, ARGV[2]))
end
return {'OK', epoch, ver, tostring(now), tostring(created), replid()}
