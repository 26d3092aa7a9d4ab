-- flags:
-- Adds modules to the index of ids, which layout 1 did not have.
-- KEYS    1..9 the shard, then record and frame of each id
-- ARGV    ids
-- RETURNS {'OK', number of modules that were added}
-- KEEPS   the index has exactly the ids whose records are modules
local refused = refuse()
if refused then return refused end
local tiers, added = {}, 0
for i, id in ipairs(ARGV) do -- a wrong type fails here, before the first write
  tiers[i] = call('HGET', KEYS[8 + 2 * i], 'tier')
  is_listed(id)
end
for i, id in ipairs(ARGV) do
  if tiers[i] and tiers[i] ~= 'deleted' and not is_listed(id) then
    list_id(id)
    added = added + 1
  end
end
return {'OK', added}
