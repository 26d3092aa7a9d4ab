-- flags:
-- Makes a version hot: moves its content into the record and deletes the frame.
-- KEYS    1..9 the shard, 10 record, 11 frame, then record and frame of each move
-- ARGV    id, write id, content, reason, moves
-- RETURNS {'OK', evicted} | {'ALREADY'} | {'CHANGED'} | {'TOO_LARGE'} | {'OVER', ...}
--         | {'NOT_ADMITTED'} if the reason is `uses` and the modules that would leave are worth more (`is_worth`), or the first of
--         them ranks as high
-- KEEPS   only the version that the caller read is promoted; clean stays clean, dirty stays dirty; budgets
local refused = refuse()
if refused then return refused end
-- Whether hot admits a module for which some of the candidates have to leave. Their records are read without being among KEYS, which
-- fails while a slot moves to another node; then the client decides.
local function admits(id, p, over, victims)
  if policy then
    return admits_all() or next_rank(HOT_RANK, id, p.tokens, p.bytes) > tonumber(call('ZSCORE', HOT_RANK, victims[1]) or 0)
  end
  local tokens, bytes, uses = 0, 0, 0
  for _, victim in ipairs(victims) do
    local v = redis.pcall('HMGET', (keys_of(victim)), 'tokens', 'bytes')
    if v.err then return true end
    tokens, bytes, uses = tokens + (tonumber(v[1]) or 0), bytes + (tonumber(v[2]) or 0), uses + uses_of(victim)
    if tokens >= tonumber(over[1]) and bytes >= tonumber(over[2]) then break end
  end
  if tonumber(over[1]) > 0 then return is_worth(uses_of(id), p.tokens, uses, tokens) end
  return is_worth(uses_of(id), p.bytes, uses, bytes)
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
  if ARGV[4] == 'uses' and over[3][1] and not admits(id, old, over[2], over[3]) then return {'NOT_ADMITTED'} end
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
