-- flags:
-- Writes a new version, dirty, and makes the room that it needs in the same step.
-- KEYS    1..9 the shard, 10 record, 11 frame, 12 done, then record and frame of each move
-- ARGV    id, tok, tier ('hot'|'warm'), expected ('' any, '-' none, 'epoch-ver'), tokens, bytes, content or frame,
--         codec ('' when hot), number of further fields, name and value of each, moves
-- RETURNS {'OK', epoch, ver, evicted} | {'REPLAYED', version, tier} | {'CONFLICT', version} |
--         {'TOO_LARGE'} | {'OVER', ...}
-- KEEPS   budgets are never exceeded; a new version is dirty and has no TTL; a tok is applied once
local refused = refuse()
if refused then return refused end
local id, tok, tier, expected, record, frame = ARGV[1], ARGV[2], ARGV[3], ARGV[4], KEYS[10], KEYS[11]
local old, now = placed(record), now_ms()
local done = call('GET', KEYS[12])
if done then return {'REPLAYED', done, old.tok == tok and old.tier or ''} end

local exists = old.tier ~= 'none' and old.tier ~= 'deleted'
if expected == '-' and exists or expected ~= '' and expected ~= '-' and not (exists and expected == old.version) then
  return {'CONFLICT', exists and old.version or ''}
end
local new = {tier = tier, tokens = tonumber(ARGV[5]), bytes = tonumber(ARGV[6]), frame_bytes = #ARGV[7]}
local limit = call('HMGET', LIMITS, 'hot_tokens', 'hot_bytes', 'warm_bytes', 'warm_modules')
if tier == 'hot' and (new.tokens > tonumber(limit[1]) or new.bytes > tonumber(limit[2]))
  or tier == 'warm' and (new.frame_bytes > tonumber(limit[3]) or limit[4] == '0') then
  return {'TOO_LARGE'}
end

count(old, -1)
count(new, 1)
local n = tonumber(ARGV[9])
local moves, over = make_room(13, 10 + 2 * n, id, now)
if not moves then return over end
local evicted = apply(moves, 'evict', now)

local epoch = call('HGET', EPOCH, 'epoch')
local ver = call('HINCRBY', EPOCH, 'ver', 1)
local version = epoch .. '-' .. ver
local created = exists and call('HGET', record, 'created') or now
call('DEL', record)
call('UNLINK', frame)
call('HSET', record, 'tier', tier, 'epoch', epoch, 'ver', ver, 'tok', tok, 'bytes', ARGV[6], 'tokens', ARGV[5],
  'clean', '0', 'created', created, 'updated', now, unpack(ARGV, 10, 9 + 2 * n))
if tier == 'hot' then
  call('HSET', record, 'content', ARGV[7])
  call('ZREM', WARM, id)
  call('ZADD', HOT, now, id)
else
  call('HSET', record, 'codec', ARGV[8], 'frame_bytes', #ARGV[7])
  call('SET', frame, ARGV[7])
  call('ZREM', HOT, id)
  keep_frame(id, frame, false, now)
end
call('ZADD', DIRTY, 'NX', now, id) -- dirty since the oldest version that is not archived
call('SET', KEYS[12], version, 'PX', 120000)
settle()
emit(id, exists and old.tier or 'none', tier, 'put', version)
return {'OK', epoch, ver, evicted}
