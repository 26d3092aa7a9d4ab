-- flags: no-writes
-- Reads a part of the content of a hot module, so that a large one need not be sent whole. Does not count as a use.
-- KEYS    1..9 the shard, 10 record
-- ARGV    first byte (from 0), number of bytes, the least size of a content that is worth it
-- RETURNS {'OK', part, bytes, epoch, ver, write id, content type} | {'WHOLE'} if it has to be read as any module: it is smaller, not hot,
--         not known to be the newest version, expired, or its content is damaged
-- KEEPS   writes nothing
local refused = refuse()
if refused then return refused end
local record, first = KEYS[10], tonumber(ARGV[1])
local f = call('HMGET', record, 'tier', 'bytes', 'epoch', 'ver', 'tok', 'type')
local bytes = tonumber(f[2] or 0) or 0
if f[1] ~= 'hot' or bytes < tonumber(ARGV[3]) or not is_checked(record) or is_expired(record, now_ms())
  or call('HSTRLEN', record, 'content') ~= bytes then return {'WHOLE'} end
local part = string.sub(call('HGET', record, 'content'), first + 1, first + tonumber(ARGV[2]))
return {'OK', part, f[2], f[3], f[4], f[5], f[6] or ''}
