-- flags: allow-oom
-- Moves modules one tier down: hot ones to warm with their frames, clean ones to cold.
-- KEYS    1..9 the shard, then record and frame of each move
-- ARGV    reason, moves
-- RETURNS {'OK', word for each move: 'moved' | 'already' | 'changed' | 'pinned' | 'dirty'} | {'OVER', ...}
-- KEEPS   only the versions that the caller read are moved; a dirty version keeps a copy without a TTL; warm budgets
local refused = refuse()
if refused then return refused end
local now = now_ms()
local moves = read_moves(10, 2, '', now)
weigh(moves, 1)
local words, fits, over = {}, budgets()
for i, m in ipairs(moves) do words[i] = m.why or 'moved' end
local dropped = not fits and drop_from_warm(moves, '', now)
if not fits and not dropped then return name_victims(over, '', now) end
apply(moves, ARGV[1], now)
apply(dropped or {}, 'evict', now)
settle()
return {'OK', words}
