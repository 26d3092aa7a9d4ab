-- flags: allow-oom
-- Gives a lease back, if it is still the caller's.
-- KEYS    1..9 the shard, 10 lease
-- ARGV    the holder's token
-- RETURNS 1 if it was, else 0
-- KEEPS   nobody else's lease
if call('GET', KEYS[10]) ~= ARGV[1] then return 0 end
return call('DEL', KEYS[10])
