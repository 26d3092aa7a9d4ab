-- flags: allow-oom
-- Sets this shard's share of the budgets as a version of the ledger says it, and tells what must go for that.
-- KEYS    1..9 the shard
-- ARGV    version of the ledger, then hot tokens, hot bytes, warm modules, warm bytes (none: the limits stay as they are)
-- RETURNS {'OK', the four limits} | {'STALE', version} | {'OVER', ...}: set, but the shard still holds more
-- KEEPS   limits of a version are never replaced by those of an older one. Where it answers OK, the shard holds no more than
--         that, and will not before a newer version is set: every change that adds is checked
local refused = refuse()
if refused then return refused end
local names = {'hot_tokens', 'hot_bytes', 'warm_modules', 'warm_bytes'}
local kept = call('HGET', LIMITS, 'shares') or '0'
if tonumber(kept) > tonumber(ARGV[1]) then return {'STALE', kept} end
call('HSET', LIMITS, 'shares', ARGV[1])
if #ARGV > 1 then
  for i, name in ipairs(names) do call('HSET', LIMITS, name, ARGV[i + 1]) end
  local _, over = budgets()
  if math.max(unpack(over)) > 0 then return name_victims(over, '', now_ms()) end
end
return {'OK', unpack(call('HMGET', LIMITS, unpack(names)))}
