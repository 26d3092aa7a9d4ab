-- flags: allow-oom
-- Compares the accounts of the shard with a recount, and sets them to it.
-- KEYS    1..9 the shard, then the records that changed while the others were counted
-- ARGV    '1' to repair, '0' to look only; id of the last event; then name and sum of each account over all other records
-- RETURNS {'OK', name and difference (kept less counted) of each account that is wrong} | {'CHANGED'}
-- KEEPS   exact while others write: whatever changes an account emits an event, and after the last one that the counter
--         has seen there was none; else nothing is said and nothing is done
local refused = refuse()
if refused then return refused end
local last = call('XREVRANGE', EVENTS, '+', '-', 'COUNT', 1)
if (last[1] and last[1][1] or '0-0') ~= ARGV[2] then return {'CHANGED'} end
for i = 10, #KEYS do count(placed(KEYS[i]), 1) end
for i = 3, #ARGV, 2 do add(ARGV[i], tonumber(ARGV[i + 1])) end
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
