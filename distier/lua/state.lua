-- flags: no-writes
-- The epoch of a shard, and up to which epoch all of the archive has been reconciled with its records.
-- KEYS    1..9 the shard
-- RETURNS {'OK', epoch, verified, ver: the last version that was given}
-- KEEPS   answers only for the incarnation of the server that the epoch was claimed for
local refused = refuse()
if refused then return refused end
local e = call('HMGET', EPOCH, 'epoch', 'verified', 'ver')
return {'OK', e[1], e[2] or '0', e[3] or '0'}
