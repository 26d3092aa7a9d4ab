-- flags: allow-oom
-- Checks that the shard's sets and its index of ids agree with the records of some modules, and repairs the sets.
-- KEYS    1..9 the shard, then record and frame of each id
-- ARGV    '1' to repair, '0' to check only; then the ids
-- RETURNS {'OK', for each id a list of the names of its faults, with '+' before repaired ones}
-- KEEPS   an id in its correct set keeps its score; a record that is no hash or has no valid tier is left to `mend`
local refused = refuse()
if refused then return refused end
local repair, now, found, reply = ARGV[1] == '1', now_ms(), {}, {}

local function wrong(word)
  found[#found + 1] = (repair and '+' or '') .. word
  return repair
end
local function member(zset, name, id, should)
  local is = call('ZSCORE', zset, id) and true or false
  if is and not should and wrong('stray-' .. name) then call('ZREM', zset, id) end
  if should and not is and wrong('missing-' .. name) then call('ZADD', zset, now, id) end
end

local function ranked_in(rank, name, id, should, amount, bytes)
  if not ranked then return end
  local is = call('ZSCORE', rank, id) and true or false
  if is and not should and wrong('stray-' .. name) then call('ZREM', rank, id) end
  if should and not is and wrong('missing-' .. name) then set_rank(rank, id, amount, bytes) end
end

local function listed(id, should)
  local is = is_listed(id)
  if is and not should and wrong('stray-ids') then unlist_id(id) end
  if should and not is and wrong('missing-ids') then list_id(id) end
end

for i = 2, #ARGV do
  local id, record = ARGV[i], KEYS[6 + 2 * i]
  local type_of = call('TYPE', record)
  type_of = type(type_of) == 'table' and type_of.ok or type_of
  local r = (type_of == 'hash' or type_of == 'none') and placed(record) or {}
  local live = r.tier == 'hot' or r.tier == 'warm' or r.tier == 'cold'
  found = {}
  if live or r.tier == 'deleted' or type_of == 'none' then
    member(HOT, 'hot', id, r.tier == 'hot')
    member(WARM, 'warm', id, r.tier == 'warm')
    ranked_in(HOT_RANK, 'rank:hot', id, r.tier == 'hot', r.tokens, r.bytes)
    ranked_in(WARM_RANK, 'rank:warm', id, r.tier == 'warm', 1, r.frame_bytes)
    member(DIRTY, 'dirty', id, r.tier ~= 'none' and not r.clean)
    listed(id, live)
    local at = live and expiry_of(record)
    if at and tonumber(call('ZSCORE', EXPIRING, id) or nil) ~= at and wrong('missing-expiring') then note_expiry(id, record) end
    if not live then
      member(USES, 'uses', id, false)
      if tonumber(call('ZSCORE', PINS, id) or 0) > now then member(PINS, 'pins', id, false) end
    end
  end
  reply[i - 1] = found
end
return {'OK', reply}
