-- flags: allow-oom
-- Says that a worker lives, or that it leaves, and tells which ones live.
-- KEYS    1..9 shard 0, 10 the workers
-- ARGV    the worker, how long it counts as alive in ms (0: it leaves)
-- RETURNS {'OK', workers}
-- KEEPS   a worker that was silent for that long is forgotten, by the server's clock
local refused = refuse()
if refused then return refused end
local now = now_ms()
if ARGV[2] == '0' then call('ZREM', KEYS[10], ARGV[1]) else call('ZADD', KEYS[10], now + ARGV[2], ARGV[1]) end
call('ZREMRANGEBYSCORE', KEYS[10], '-inf', now)
return {'OK', call('ZRANGE', KEYS[10], 0, -1)}
