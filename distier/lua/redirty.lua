-- flags: allow-oom
-- Makes an archived version dirty because its object is gone, so that it is archived again from its copy in Redis.
-- KEYS    1..9 the shard, 10 record, 11 frame
-- ARGV    id, write id
-- RETURNS {'OK'} | {'CHANGED'}
-- KEEPS   only the version that the caller read, and only if its content is in Redis; a dirty frame has no TTL, and needs no dictionary
local refused = refuse()
if refused then return refused end
local id, record, frame, now = ARGV[1], KEYS[10], KEYS[11], now_ms()
local old = placed(record)
local here = old.tier == 'hot' and call('HSTRLEN', record, 'content') == old.bytes
  or old.tier == 'warm' and call('EXISTS', frame) == 1 and string.sub(call('HGET', record, 'codec') or '', 1, 5) ~= 'lz4d:'
if old.write_id ~= ARGV[2] or not old.clean or not here then return {'CHANGED'} end
count(old, -1)
count({tier = old.tier, tokens = old.tokens, bytes = old.bytes, clean = false, frame_bytes = old.frame_bytes}, 1)
call('HSET', record, 'clean', '0')
call('HDEL', record, 'archived_key', 'archived_bytes')
call('ZADD', DIRTY, now, id)
if old.tier == 'warm' then keep_frame(id, frame, false, now) end
settle()
emit(id, old.tier, old.tier, 'repair', old.version)
return {'OK'}
