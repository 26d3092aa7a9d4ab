-- What all functions share. A shard's root, `distier:{team}:`, is the only key of a call; the others have names that begin with it.
local function call(...) return redis.call(...) end -- there is no redis.call yet while a library is loaded

local function fail(text) return redis.error_reply('ERR distier: ' .. text) end

-- The shard's keys by name, its epoch, and the time in ms. Returns nil and the error where the key is no root of a shard.
local function shard_of(keys)
  local root = keys[1] or ''
  local tag = string.match(root, '^distier:{([^{}]+)}:$')
  if #keys ~= 1 or not tag then return nil, fail("the one key is the root of a shard, as in FCALL_RO distier_where 1 'distier:{team}:' ID") end
  local s = {root = root, tag = tag}
  for _, name in ipairs(FIXED) do s[name] = root .. name end
  local e = call('HMGET', s.epoch, 'epoch', 'shards', 'layout', 'verified', 'since', 'replid', 'eviction', 'ranked')
  if not e[1] then
    if call('EXISTS', 'distier:{' .. tag .. '.0}:epoch') == 1 then
      return nil, fail('this namespace has several shards: their roots are distier:{' .. tag .. '.0}: and so on')
    end
    return nil, fail('there is no namespace here, or its Redis has lost it; distier doctor says more')
  end
  if e[3] and e[3] ~= LAYOUT then return nil, fail('the namespace has layout ' .. e[3] .. ', and this library knows layout ' .. LAYOUT) end
  s.epoch_number, s.shards, s.verified, s.since, s.replid = e[1], tonumber(e[2] or 1), e[4] or '0', tonumber(e[5] or 0), e[6] or ''
  s.policy, s.ranked = e[7] or 'lru', e[8] == '1'
  local t = call('TIME')
  s.now = t[1] * 1000 + math.floor(t[2] / 1000)
  return s
end

-- CRC-32 of an id modulo the number of shards is its shard.
local function crc32(text)
  local crc = 0xFFFFFFFF
  for i = 1, #text do
    crc = bit.bxor(crc, string.byte(text, i))
    for _ = 1, 8 do
      crc = bit.bxor(bit.rshift(crc, 1), bit.band(0xEDB88320, -bit.band(crc, 1)))
    end
  end
  return bit.bnot(crc) % 4294967296
end
local function elsewhere(s, id)
  if s.shards < 2 then return nil end
  local mine, wanted = tonumber(string.match(s.tag, '%.(%d+)$')), crc32(id) % s.shards
  if mine == wanted then return nil end
  return fail('this id is in another shard: ' .. string.gsub(s.root, '%.%d+}', '.' .. wanted .. '}'))
end

local function record_key(s, id) return s.root .. 'module:' .. encode_id(id) end
local function frame_key(s, id) return s.root .. 'warm:' .. encode_id(id) end

-- -- text --------------------------------------------------------------------------------------------------------------

local function commas(n)
  local text = string.format('%.0f', n)
  local out, left = string.gsub(text, '(%d)(%d%d%d)$', '%1,%2'), 1
  while left > 0 do out, left = string.gsub(out, '^(%d+)(%d%d%d),', '%1,%2,') end
  return out
end
local function counted(n, what) return commas(n) .. ' ' .. what .. (n == 1 and '' or 's') end
local function size(n)
  local units = {'B', 'KiB', 'MiB', 'GiB', 'TiB'}
  local i = 1
  while n >= 1024 and i < #units do n, i = n / 1024, i + 1 end
  return (i == 1 and string.format('%.0f', n) or string.format('%.1f', n)) .. ' ' .. units[i]
end
local function span(ms)
  local s = math.max(0, ms) / 1000
  if s < 1 then return '0 s' end
  if s < 120 then return string.format('%.0f s', s) end
  if s < 7200 then return string.format('%.0f min', s / 60) end
  if s < 172800 then return string.format('%.0f h', s / 3600) end
  return string.format('%.0f days', s / 86400)
end
local function ago(s, ms) return ms and span(s.now - ms) .. ' ago' or 'never' end
local function part(used, most) return most > 0 and string.format('%.0f%%', 100 * used / most) or '-' end

-- Columns with two spaces between them; those whose head begins with `>` are flush right.
local function rows(head, body)
  local widths, lines = {}, {}
  for i, name in ipairs(head) do
    widths[i] = #string.gsub(name, '^>', '')
    for _, row in ipairs(body) do widths[i] = math.max(widths[i], #tostring(row[i])) end
  end
  local function line(row)
    local out = {}
    for i, cell in ipairs(row) do
      local right = string.sub(head[i], 1, 1) == '>'
      out[i] = string.format('%' .. (right and '' or '-') .. widths[i] .. 's', (string.gsub(tostring(cell), '^>', '')))
    end
    return (string.gsub(table.concat(out, '  '), '%s+$', ''))
  end
  lines[1] = line(head)
  for _, row in ipairs(body) do lines[#lines + 1] = line(row) end
  return lines
end

-- The reply: lines for people, or the data as a map where the last argument is `map`. An id may have any characters but control
-- characters, and a status reply no line ends.
local function answer(args, data, lines)
  if args[#args] == 'map' then
    redis.setresp(3)
    return {map = data}
  end
  local out = {}
  for i, line in ipairs(lines) do out[i] = {ok = (string.gsub(line, '[%c]', '?'))} end
  return out
end
local function without_map(args)
  local out = {}
  for i, value in ipairs(args) do
    if i < #args or value ~= 'map' then out[#out + 1] = value end
  end
  return out
end
local function listed(data)
  redis.setresp(3)
  local out = {}
  for i, entry in ipairs(data) do out[i] = {map = entry} end
  return out
end
