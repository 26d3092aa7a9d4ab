-- flags:
-- Makes a version hot: moves its content into the record and deletes the frame.
-- KEYS    1..9 the shard, 10 record, 11 frame, then record and frame of each move
-- ARGV    id, write id, content, reason, moves
-- RETURNS {'OK', evicted} | {'ALREADY'} | {'CHANGED'} | {'TOO_LARGE'} | {'OVER', ...}
--         | {'NOT_ADMITTED'} if the reason is `uses` and the first module that would leave is used at least as often, or
--         ranks as high
-- KEEPS   only the version that the caller read is promoted; clean stays clean, dirty stays dirty; budgets
local refused = refuse()
if refused then return refused end
local function outranks(id, first, p)
  if not policy then return uses_of(id) > uses_of(first) end
  return admits_all() or next_rank(HOT_RANK, id, p.tokens, p.bytes) > tonumber(call('ZSCORE', HOT_RANK, first) or 0)
end
local id, record, frame = ARGV[1], KEYS[10], KEYS[11]
local old, now = placed(record), now_ms()
if old.write_id ~= ARGV[2] or old.bytes ~= #ARGV[3] or old.tier == 'deleted' then return {'CHANGED'} end
if old.tier == 'hot' then return {'ALREADY'} end
local limit = limits()
if old.tokens > tonumber(limit[1]) or old.bytes > tonumber(limit[2]) then return {'TOO_LARGE'} end

count(old, -1)
count({tier = 'hot', tokens = old.tokens, bytes = old.bytes, clean = old.clean, archived_bytes = old.archived_bytes}, 1)
local moves, over = make_room(12, 5, id, now)
if not moves then
  local first = over[3][1]
  if ARGV[4] == 'uses' and first and not outranks(id, first, old) then return {'NOT_ADMITTED'} end
  return over
end
local evicted = apply(moves, 'evict', now)
if old.tier == 'cold' then note_regret(record, now, old.tokens) end

call('HSET', record, 'tier', 'hot', 'content', ARGV[3], 'moved', move_of(now, old.tier, 'hot', ARGV[4]))
call('HDEL', record, 'codec', 'frame_bytes')
call('UNLINK', frame)
become_hot(id, old.tokens, old.bytes)
settle()
emit(id, old.tier, 'hot', ARGV[4], old.version)
return {'OK', evicted}
