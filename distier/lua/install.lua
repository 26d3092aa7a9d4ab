-- flags:
-- Stores the frame of a clean version, which moves it from cold to warm. Also replaces a warm frame that expired or is damaged.
-- KEYS    1..9 the shard, 10 record, 11 frame, then record and frame of each move
-- ARGV    id, write id, codec, frame, reason, moves
-- RETURNS {'OK', evicted} | {'CHANGED'} | {'TOO_LARGE'} | {'OVER', ...}
-- KEEPS   only the version that the caller read, and only if it is clean; a clean frame has a TTL; budgets
local refused = refuse()
if refused then return refused end
local id, record, frame = ARGV[1], KEYS[10], KEYS[11]
local old, now = placed(record), now_ms()
if old.write_id ~= ARGV[2] or not old.clean or (old.tier ~= 'cold' and old.tier ~= 'warm') then return {'CHANGED'} end
local limit = call('HMGET', LIMITS, 'warm_bytes', 'warm_modules')
if #ARGV[4] > tonumber(limit[1]) or limit[2] == '0' then return {'TOO_LARGE'} end

count(old, -1)
count({tier = 'warm', tokens = old.tokens, bytes = old.bytes, clean = true, frame_bytes = #ARGV[4],
  archived_bytes = old.archived_bytes}, 1)
local moves, over = make_room(12, 6, id, now)
if not moves then return over end
local evicted = apply(moves, 'evict', now)

call('HSET', record, 'tier', 'warm', 'codec', ARGV[3], 'frame_bytes', #ARGV[4])
call('SET', frame, ARGV[4])
keep_frame(id, frame, true, now)
settle()
if old.tier ~= 'warm' then emit(id, old.tier, 'warm', ARGV[5], old.version) end
return {'OK', evicted}
