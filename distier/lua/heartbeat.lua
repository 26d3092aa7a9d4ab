-- flags: allow-oom
-- Says that a worker lives, or that it leaves, and tells which ones live.
-- KEYS    1..9 shard 0, 10 the workers
-- ARGV    the worker, how long it counts as alive in ms (0: it leaves)
-- RETURNS {'OK', workers}
-- KEEPS   a worker that was silent for that long is forgotten, by the server's clock; where that is set back, by what is left of it
local refused = refuse()
if refused then return refused end
local workers, ttl, time = KEYS[10], tonumber(ARGV[2]), call('TIME')
local now = time[1] * 1000 + math.floor(time[2] / 1000)
if ttl == 0 then call('ZREM', workers, ARGV[1])
else
  -- Nobody is said to live for longer than that: these heartbeats are from before the clock went back.
  for _, worker in ipairs(call('ZRANGEBYSCORE', workers, '(' .. now + ttl, '+inf')) do call('ZADD', workers, now + ttl, worker) end
  call('ZADD', workers, now + ttl, ARGV[1])
end
call('ZREMRANGEBYSCORE', workers, '-inf', now)
return {'OK', call('ZRANGE', workers, 0, -1)}
