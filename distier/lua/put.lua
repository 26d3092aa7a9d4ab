-- flags:
-- Writes a new version, and makes the room that it needs in the same step: dirty, under the next place in the order; or, where
-- its place was reserved and it is in the archive already, clean.
-- KEYS    1..9 the shard, 10 record, 11 frame, 12 done, then record and frame of each move
-- ARGV    id, tok, tier ('hot'|'warm'; 'cold' where it is archived), expected ('' any, '-' none, 'epoch-ver'), reserved epoch, reserved ver ('' both: not
--         archived), archived_bytes, tokens, bytes, content or frame, codec ('' when hot), number of further fields, name
--         and value of each, moves
-- RETURNS {'OK', epoch, ver, evicted} | {'REPLAYED', version, tier} | {'CONFLICT', version} | {'UNVERIFIED'} | {'FENCED'} |
--         {'SUPERSEDED', version} | {'PASSED'} | {'TOO_LARGE'} | {'OVER', ...}
-- KEEPS   budgets are never exceeded; a dirty version has no TTL; a tok is applied once; the order never goes back
local refused = refuse()
if refused then return refused end
local id, tok, tier, record, frame = ARGV[1], ARGV[2], ARGV[3], KEYS[10], KEYS[11]
local old, now, clean = placed(record), now_ms(), ARGV[5] ~= ''
local done = call('GET', KEYS[12])
if done then
  call('PEXPIRE', KEYS[12], 120000) -- a write, so that WAIT covers the first one
  return {'REPLAYED', done, old.tok == tok and old.tier or ''}
end
local epoch, ver = call('HGET', EPOCH, 'epoch'), ARGV[6]
if clean and ARGV[5] ~= epoch then return {'FENCED'} end
if clean and comes_after(old, tonumber(epoch), tonumber(ver)) then return {'SUPERSEDED', old.version} end
if clean and passed(old, epoch, tonumber(ver), ARGV[4]) then return {'PASSED'} end
local conflict = unexpected(old, record, ARGV[4])
if conflict then return conflict end

local new = {tier = tier, tokens = tonumber(ARGV[8]), bytes = tonumber(ARGV[9]), frame_bytes = #ARGV[10], clean = clean,
  archived_bytes = tonumber(ARGV[7])}
local limit = call('HMGET', LIMITS, 'hot_tokens', 'hot_bytes', 'warm_bytes', 'warm_modules')
if tier == 'hot' and (new.tokens > tonumber(limit[1]) or new.bytes > tonumber(limit[2]))
  or tier == 'warm' and (new.frame_bytes > tonumber(limit[3]) or limit[4] == '0') then
  return {'TOO_LARGE'}
end
count(old, -1)
count(new, 1)
local n = tonumber(ARGV[12])
local moves, over = make_room(13, 13 + 2 * n, id, now)
if not moves then return over end
local evicted = apply(moves, 'evict', now)

if not clean then ver = call('HINCRBY', EPOCH, 'ver', 1) end
local version = epoch .. '-' .. ver
local exists = old.tier ~= 'none' and old.tier ~= 'deleted'
local created = exists and call('HGET', record, 'created') or now
call('UNLINK', record, frame)
call('HSET', record, 'tier', tier, 'epoch', epoch, 'ver', ver, 'tok', tok, 'seen', epoch, 'bytes', ARGV[9], 'tokens', ARGV[8],
  'clean', clean and '1' or '0', 'created', created, 'updated', now, unpack(ARGV, 13, 12 + 2 * n))
if tier == 'hot' then
  call('HSET', record, 'content', ARGV[10])
  call('ZREM', WARM, id)
  call('ZADD', HOT, now, id)
else
  call('ZREM', HOT, id)
  call('ZREM', WARM, id)
end
if tier == 'warm' then
  call('HSET', record, 'codec', ARGV[11], 'frame_bytes', #ARGV[10])
  call('SET', frame, ARGV[10])
  keep_frame(id, frame, clean, now)
end
if clean then call('ZREM', DIRTY, id)
else call('ZADD', DIRTY, 'NX', now, id) end -- since the oldest version that is not archived
call('SET', KEYS[12], version, 'PX', 120000)
settle()
emit(id, exists and old.tier or 'none', tier, 'put', version)
return {'OK', epoch, ver, evicted}
