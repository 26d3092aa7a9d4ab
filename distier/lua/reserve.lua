-- flags: allow-oom
-- Takes the next place in the order for a write that goes to the archive before it is applied.
-- KEYS    1..9 the shard, 10 record
-- ARGV    expected ('' any, '-' none, 'epoch-ver')
-- RETURNS {'OK', epoch, ver, now_ms, created_ms, replication id} | {'CONFLICT', version} | {'UNVERIFIED'}
-- KEEPS   a place is given once
local refused = refuse()
if refused then return refused end
local old = placed(KEYS[10])
local conflict = unexpected(old, KEYS[10], ARGV[1])
if conflict then return conflict end
local now = now_ms()
local created = old.tier ~= 'none' and old.tier ~= 'deleted' and call('HGET', KEYS[10], 'created') or now
return {'OK', call('HGET', EPOCH, 'epoch'), call('HINCRBY', EPOCH, 'ver', 1), tostring(now), tostring(created), replid()}
