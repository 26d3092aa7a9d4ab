-- flags:
-- Makes a dictionary the shard's current one, or drops one.
-- KEYS    1..9 the shard, 10 dictionaries
-- ARGV    name, its bytes ('' drops it)
-- RETURNS {'OK', '1' if something was changed, else '0'}
-- KEEPS   the current dictionary is never dropped; if it is gone, it is not the current one any more
local refused = refuse()
if refused then return refused end
local name, data = ARGV[1], ARGV[2]
local there = call('HEXISTS', KEYS[10], name) == 1
if data == '' then
  if dictionary == name then return {'OK', there and 0 or call('HDEL', EPOCH, 'dictionary')} end
  return {'OK', call('HDEL', KEYS[10], name)}
end
if dictionary == name and there then return {'OK', 0} end
call('HSET', KEYS[10], name, data)
call('HSET', EPOCH, 'dictionary', name)
return {'OK', 1}
