-- flags: no-writes
-- Returns the epoch of a shard, and the epoch up to which its records were reconciled with the whole archive.
-- KEYS    1..9 the shard
-- RETURNS {'OK', epoch, verified, ver: the last assigned version number, '1' if the order of eviction is that of ranks, dictionary}
-- KEEPS   returns OK only in the incarnation of the server for which the epoch was claimed
local refused = refuse()
if refused then return refused end
local e = call('HMGET', EPOCH, 'epoch', 'verified', 'ver')
return {'OK', e[1], e[2] or '0', e[3] or '0', ranked and '1' or '0', dictionary}
