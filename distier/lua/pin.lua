-- flags: allow-oom
-- Pins a module for a time, or removes its pin.
-- KEYS    1..9 the shard, 10 record
-- ARGV    id, ttl_ms ('0' unpins)
-- RETURNS {'OK', until_ms as string} | {'MISSING'}
-- KEEPS   every pin expires
local refused = refuse()
if refused then return refused end
local tier, now = call('HGET', KEYS[10], 'tier'), now_ms()
call('ZREMRANGEBYSCORE', PINS, '-inf', now)
if ARGV[2] == '0' then
  call('ZREM', PINS, ARGV[1])
  return {'OK', '0'}
end
if not tier or tier == 'deleted' then return {'MISSING'} end
local ends = string.format('%.0f', now + tonumber(ARGV[2]))
call('ZADD', PINS, ends, ARGV[1])
return {'OK', ends}
