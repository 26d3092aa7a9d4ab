-- flags: allow-oom
-- Deletes a module: all copies here go, a dirty tombstone stays until the archive has one too.
-- KEYS    1..9 the shard, 10 record, 11 frame, 12 done
-- ARGV    id, tok, expected ('' any, 'epoch-ver')
-- RETURNS {'OK', version} | {'REPLAYED', version} | {'MISSING'} | {'CONFLICT', version}
-- KEEPS   the tombstone comes after every version before it in the order; a tok is applied once
local refused = refuse()
if refused then return refused end
local id, tok, record = ARGV[1], ARGV[2], KEYS[10]
local old, now = placed(record), now_ms()
local done = call('GET', KEYS[12])
if done then return {'REPLAYED', done} end
if old.tier == 'none' or old.tier == 'deleted' then return {'MISSING'} end
if ARGV[3] ~= '' and ARGV[3] ~= old.version then return {'CONFLICT', old.version} end

local epoch = call('HGET', EPOCH, 'epoch')
local ver = call('HINCRBY', EPOCH, 'ver', 1)
local version = epoch .. '-' .. ver
count(old, -1)
count({tier = 'deleted', bytes = 0}, 1)
call('UNLINK', record, KEYS[11])
for _, zset in ipairs({HOT, WARM, USES, PINS}) do call('ZREM', zset, id) end
call('HSET', record, 'tier', 'deleted', 'epoch', epoch, 'ver', ver, 'tok', tok, 'bytes', 0, 'clean', '0', 'updated', now)
call('ZADD', DIRTY, 'NX', now, id) -- dirty since the oldest version that is not archived
call('SET', KEYS[12], version, 'PX', 120000)
settle()
emit(id, old.tier, 'deleted', 'delete', version)
return {'OK', version}
