-- flags:
-- Adds what a process has counted to what the fleet has learned: which modules followed a module or a keyword.
-- KEYS    1..9 the shard, 10 what is learned
-- ARGV    the most bytes for each module of the shard, uses of each entry in a half-life; then for each entry its field, the most
--         followers, uses, number of followers, and each follower with its count
-- RETURNS {'OK', number of entries, bytes}
-- KEEPS   an entry has its strongest followers; counts are halved once per generation; the hash has at most the given bytes for each
--         module of the shard (4096 at least), for which entries with few uses leave. `ENTRY` bytes are what an entry takes besides
--         its texts, by MEMORY USAGE. Of equal followers the newer one stays, or nothing new would ever be learned
local refused = refuse()
if refused then return refused end
local LEARNED, ENTRY, VALUE_MAX, WHOLE = KEYS[10], 80, 1024, ''
local modules = 0
for _, n in ipairs(call('HMGET', USAGE, 'hot_count', 'warm_count', 'cold_count')) do modules = modules + (tonumber(n) or 0) end
local most, half_life = math.max(4096, ARGV[1] * modules), tonumber(ARGV[2])
local words = string.gmatch(call('HGET', LEARNED, WHOLE) or '', '%S+')
local function number(from) return tonumber(from() or '') or 0 end
local generation, uses, bytes = number(words), number(words), number(words)

local function read(field)
  local value, found = call('HGET', LEARNED, field), {}
  local parts = string.gmatch(value or '', '%S+')
  local scale = 0.5 ^ math.max(generation - number(parts), 0)
  local used = number(parts) * scale
  for follower in parts do found[#found + 1] = {follower, number(parts) * scale, #found} end
  return used, found, value and ENTRY + #field + #value or 0
end

local i = 3
while ARGV[i] do
  local field, followers_max, n = ARGV[i], tonumber(ARGV[i + 1]), tonumber(ARGV[i + 3])
  local used, found, size = read(field)
  local place = {}
  for _, f in ipairs(found) do place[f[1]] = f end
  for j = i + 4, i + 2 + 2 * n, 2 do
    local f = place[ARGV[j]]
    if not f then
      f = {ARGV[j], 0}
      found[#found + 1] = f
    end
    f[2], f[3] = f[2] + ARGV[j + 1], -j
  end
  table.sort(found, function(a, b) return a[2] > b[2] or (a[2] == b[2] and a[3] < b[3]) end)
  local value = string.format('%d %.4g', generation, used + ARGV[i + 2])
  for j = 1, math.min(#found, followers_max) do
    local more = string.format(' %s %.3g', found[j][1], found[j][2])
    if #value + #more <= VALUE_MAX and found[j][2] >= 0.05 then value = value .. more end
  end
  call('HSET', LEARNED, field, value)
  bytes, uses, i = bytes + ENTRY + #field + #value - size, uses + ARGV[i + 2], i + 4 + 2 * n
end
local entries = math.max(call('HLEN', LEARNED) - 1, 1)
if uses >= half_life * entries then generation, uses = generation + 1, 0 end
for _ = 1, #ARGV do
  if bytes <= most then break end
  local weakest, least, its_size
  for _, field in ipairs(call('HRANDFIELD', LEARNED, 5)) do
    local used, _, size = read(field)
    if field ~= WHOLE and (not least or used < least) then weakest, least, its_size = field, used, size end
  end
  if not weakest then break end
  bytes = bytes - its_size
  call('HDEL', LEARNED, weakest)
end
call('HSET', LEARNED, WHOLE, string.format('%d %.6g %d', generation, uses, bytes))
return {'OK', math.max(call('HLEN', LEARNED) - 1, 0), bytes}
