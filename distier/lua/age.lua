-- flags: allow-oom
-- Halves all use counts, once per half-incarnation, whoever asks first.
-- KEYS    1..9 the shard
-- ARGV    half-incarnation in ms
-- RETURNS {'OK', 1 if this call did it, else 0}
-- KEEPS   counts below one half are forgotten, so that the set does not outgrow what is in use
local refused = refuse()
if refused then return refused end
local now = now_ms()
local aged = tonumber(call('HGET', EPOCH, 'aged') or call('HGET', EPOCH, 'created') or 0)
if now - aged < tonumber(ARGV[1]) then return {'OK', 0} end
call('HSET', EPOCH, 'aged', now)
call('ZUNIONSTORE', USES, 1, USES, 'WEIGHTS', '0.5')
call('ZREMRANGEBYSCORE', USES, '-inf', '(0.5')
return {'OK', 1}
