-- flags: allow-oom
-- Records a worker's heartbeat or its departure, and returns the live workers.
-- KEYS    1..9 shard 0, 10 the workers
-- ARGV    the worker, how long it counts as alive in ms (0: it leaves)
-- RETURNS {'OK', workers}
-- KEEPS   a worker that was silent for that long, by the server's clock, is removed, also if that clock is set back
local refused = refuse()
if refused then return refused end
local workers, ttl, time = KEYS[10], tonumber(ARGV[2]), call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if ttl == 0 then call('ZREM', workers, ARGV[1])
else
  -- No worker counts as alive for longer than that, so these heartbeats are from before the clock was set back.
  for _, worker in ipairs(call('ZRANGEBYSCORE', workers, '(' .. now + ttl, '+inf')) do call('ZADD', workers, now + ttl, worker) end
  call('ZADD', workers, now + ttl, ARGV[1])
end
call('ZREMRANGEBYSCORE', workers, '-inf', now)
return {'OK', call('ZRANGE', workers, 0, -1)}
