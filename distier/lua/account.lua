-- flags: allow-oom
-- Compares the accounts of the shard with a recount, and corrects them.
-- KEYS    1..9 the shard, then the records that changed during the recount
-- ARGV    '1' to repair, '0' to check only; id of the last event before the recount ended; the ids of those records, one for each
--         of their keys; then name and sum of each account over all other records
-- RETURNS {'OK', name and difference (stored minus counted) of each wrong account} | {'CHANGED'}
-- KEEPS   exact while other clients write: each change of an account emits an event. If a later event concerns a module among the
--         other records, the script changes nothing and returns CHANGED
local refused = refuse()
if refused then return refused end
local changed, first = {}, #KEYS - 6
for i = 3, first - 1 do
  changed[ARGV[i]] = true
  count(placed(KEYS[i + 7]), 1)
end
local later = call('XRANGE', EVENTS, '(' .. ARGV[2], '+', 'COUNT', 2000)
if #later == 2000 then return {'CHANGED'} end
for _, event in ipairs(later) do
  for i = 1, #event[2], 2 do
    if event[2][i] == 'id' and event[2][i + 1] ~= '' and not changed[event[2][i + 1]] then return {'CHANGED'} end
  end
end
for i = first, #ARGV, 2 do add(ARGV[i], tonumber(ARGV[i + 1])) end
local flat, kept, reply = call('HGETALL', USAGE), {}, {'OK'}
for i = 1, #flat, 2 do
  kept[flat[i]] = tonumber(flat[i + 1]) or 0
  delta[flat[i]] = delta[flat[i]] or 0
end
for name, counted in pairs(delta) do
  local off = (kept[name] or 0) - counted
  if off ~= 0 then
    reply[#reply + 1] = name
    reply[#reply + 1] = string.format('%.0f', off)
    if ARGV[1] == '1' then call('HSET', USAGE, name, string.format('%.0f', counted)) end
  end
end
return reply
