-- flags: allow-oom
-- Releases a lease if the caller still holds it.
-- KEYS    1 lease, 2 the mark of readers that wait for the copy of the module
-- ARGV    the value of the caller's lease, '1' to keep it if readers wait, else '0'
-- RETURNS 1 if it was released, 2 if it was kept because readers wait, 0 if the caller does not hold it
-- KEEPS   leases of other holders stay
local call = redis.call
if call('GET', KEYS[1]) ~= ARGV[1] then return 0 end
if ARGV[2] == '1' and call('EXISTS', KEYS[2]) == 1 then return 2 end
return call('DEL', KEYS[1])
