-- flags: allow-oom
-- Releases a lease if the caller still holds it.
-- KEYS    1..9 the shard, 10 lease
-- ARGV    the value of the caller's lease
-- RETURNS 1 if it was released, else 0
-- KEEPS   leases of other holders stay
if call('GET', KEYS[10]) ~= ARGV[1] then return 0 end
return call('DEL', KEYS[10])
