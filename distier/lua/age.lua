-- flags: allow-oom
-- Halves all use counts, at the first call in each half-life.
-- KEYS    1..9 the shard
-- ARGV    half-life in ms
-- RETURNS {'OK', 1 if this call halved them, else 0}
-- KEEPS   counts below one half are removed, so that the set contains only modules in use
local refused = refuse()
if refused then return refused end
local now = now_ms()
local aged = tonumber(call('HGET', EPOCH, 'aged') or call('HGET', EPOCH, 'created') or 0)
if now - aged < tonumber(ARGV[1]) then return {'OK', 0} end
call('HSET', EPOCH, 'aged', now)
halve_uses(call)
return {'OK', 1}
