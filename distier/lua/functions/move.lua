-- What operators change: `demote`, `promote`, `pin`, `unpin`. Each runs the script of the client's own verb, and so has its rules.
local function shard_keys(s, ids)
  local keys = {}
  for i, name in ipairs(FIXED) do keys[i] = s[name] end
  for _, id in ipairs(ids) do keys[#keys + 1] = record_key(s, id) keys[#keys + 1] = frame_key(s, id) end
  return keys
end

-- The reply of a verb's script that refused as a whole; nil if it did not.
local REFUSED = {
  RECOVERING = 'Redis restarted or failed over; the next call of a process installs a new epoch',
  OVER = 'warm has no room for it', MISSING = 'there is no such module', TOO_LARGE = 'it is larger than the budget of hot',
  CHANGED = 'it changed meanwhile; try again', ALREADY = 'it is there already', pinned = 'it is pinned',
  dirty = 'it is not archived yet, and this is its only copy; a worker or distier flush archives it', changed = 'it changed meanwhile; try again',
  already = 'it is there already',
}

-- Moves one module a tier down. Returns whether it moved, its tier now, and why not.
local function step_down(s, id)
  local m = seen(s, id)
  if not m then return false, 'none', REFUSED.MISSING end
  if m.tier == 'cold' then return false, 'cold', 'it is in the archive only, there is nothing below' end
  local f = call('HMGET', record_key(s, id), 'tok', 'content')
  local to, codec, frame = 'cold', '', ''
  if m.tier == 'hot' and not m.clean then to, codec, frame = 'warm', 'raw', f[2] end
  local reply = run_verb('demote', shard_keys(s, {id}), {'operator', '1', id, f[1], to, codec, frame})
  local word = reply[1] == 'OK' and reply[2][1] or reply[1]
  if word == 'moved' then return true, to end
  return false, m.tier, REFUSED[word] or word
end

-- The first ids of the index that begin with a prefix, in order.
local function ids_under(s, prefix, most)
  local out, at = {}, prefix
  while #out < most do
    local first = call('ZRANGE', s.root .. 'ids', '[' .. at, '-', 'BYLEX', 'REV', 'LIMIT', 0, 1)[1]
    local chunk = s.root .. 'ids:' .. (first and encode_id(first) or '')
    local page = call('ZRANGE', chunk, '[' .. at, '+', 'BYLEX', 'LIMIT', 0, most - #out)
    for _, id in ipairs(page) do
      if string.sub(id, 1, #prefix) ~= prefix then return out end
      out[#out + 1] = id
    end
    if #out >= most then return out end
    local after = call('ZRANGE', s.root .. 'ids', '(' .. at, '+', 'BYLEX', 'LIMIT', 0, 1)[1]
    if not after or string.sub(after, 1, #prefix) ~= prefix then return out end
    at = after
  end
  return out
end

local function demote(keys, args)
  local s, no = shard_of(keys)
  if not s then return no end
  local given = without_map(args)
  local id, most = given[1], tonumber(given[2] or 100)
  if not id then return fail('name a module, or PREFIX* and the most modules to move') end
  if string.sub(id, -1) ~= '*' then
    no = elsewhere(s, id)
    if no then return no end
    local moved, tier, reason = step_down(s, id)
    return answer(args, {id = id, moved = moved, tier = tier, reason = reason}, {moved and id .. ' is now ' .. tier or id .. ' stays ' .. tier .. ': ' .. reason})
  end
  if not most or most < 1 or most > 1000 then return fail('the most modules to move at a time is 1 to 1000') end
  local prefix, went, stayed, why_not = string.sub(id, 1, -2), 0, 0, nil
  local ids = ids_under(s, prefix, most)
  for _, one in ipairs(ids) do
    local moved, tier, reason = step_down(s, one)
    if moved then went = went + 1
    elseif tier ~= 'cold' then stayed, why_not = stayed + 1, why_not or one .. ': ' .. reason end
  end
  local lines = {counted(went, 'module') .. ' of ' .. counted(#ids, 'module') .. ' with this prefix moved one tier down'}
  if stayed > 0 then lines[2] = counted(stayed, 'module') .. ' stayed, as ' .. why_not end
  if #ids == most then lines[#lines + 1] = 'there may be more: these were the first ' .. commas(most) end
  if s.shards > 1 then lines[#lines + 1] = 'this was one of ' .. s.shards .. ' shards' end
  return answer(args, {moved = went, stayed = stayed, looked_at = #ids}, lines)
end

local function promote(keys, args)
  local s, m = found(keys, args)
  if not s then return m end
  local moved, reason = false, nil
  if m.tier == 'hot' then reason = 'it is there already'
  elseif m.tier == 'cold' then reason = 'it is in the archive only; distier promote fetches it'
  elseif m.codec ~= 'raw' then reason = 'its copy is compressed, which Redis cannot read; distier promote does'
  else
    local content, write_id = call('GET', frame_key(s, m.id)), call('HGET', record_key(s, m.id), 'tok')
    local reply = run_verb('promote', shard_keys(s, {m.id}), {m.id, write_id, string.sub(content, 1, m.size_bytes), 'operator', '0'})
    moved = reply[1] == 'OK'
    reason = not moved and (reply[1] == 'OVER' and 'hot has no room for it' or REFUSED[reply[1]] or reply[1]) or nil
  end
  local tier = moved and 'hot' or m.tier
  return answer(args, {id = m.id, moved = moved, tier = tier, reason = reason},
    {moved and m.id .. ' is now hot' or m.id .. ' stays ' .. tier .. ': ' .. reason})
end

local function pin_for(keys, args, ttl_ms)
  local s, m = found(keys, args)
  if not s then return m end
  local pinned_keys = shard_keys(s, {})
  pinned_keys[#pinned_keys + 1] = record_key(s, m.id)
  local reply = run_verb('pin', pinned_keys, {m.id, string.format('%.0f', ttl_ms)})
  if reply[1] ~= 'OK' then return fail(REFUSED[reply[1]] or reply[1]) end
  local ends = tonumber(reply[2])
  local told = ttl_ms == 0 and m.id .. ' is not pinned any more' or m.id .. ' is pinned for ' .. span(ends - s.now)
  if ttl_ms > 0 and m.tier ~= 'hot' then told = told .. '; it is ' .. m.tier .. ', and a pin moves nothing' end
  return answer(args, {id = m.id, pinned_until_ms = ends > 0 and ends or nil, tier = m.tier}, {told})
end
local function pin(keys, args)
  local seconds = tonumber(without_map(args)[2])
  if not seconds or seconds <= 0 or seconds > 31536000 then return fail('pin takes an id and a number of seconds, a year at most') end
  return pin_for(keys, args, seconds * 1000)
end
local function unpin(keys, args) return pin_for(keys, args, 0) end
