-- flags: allow-oom
-- Checks that record, copies and TTLs of some modules are consistent, and repairs faults that do not need their content.
-- KEYS    1..9 the shard, then record and frame of each id
-- ARGV    '1' to repair, '0' to check only; then the ids
-- RETURNS {'OK', for each id a list of the names of its faults, with '+' before repaired ones}
-- KEEPS   consistent keys are not touched; a copy that is not archived is removed only if no record needs it
local refused = refuse()
if refused then return refused end
local repair, found, reply = ARGV[1] == '1', {}, {}
local function type_of(key)
  local t = call('TYPE', key)
  return type(t) == 'table' and t.ok or t
end
local function wrong(word, fix)
  local fixed = repair and fix and fix() ~= false
  found[#found + 1] = (fixed and '+' or '') .. word
end
local function well_formed(record)
  local tier = call('HGET', record, 'tier')
  local live = tier == 'hot' or tier == 'warm' or tier == 'cold'
  local n = call('HMGET', record, 'epoch', 'ver', 'bytes', 'clean', 'seen', 'tokens')
  for i = 1, live and 6 or 5 do
    if not n[i] or not string.match(n[i], '^%d+$') then return false end
  end
  return live or tier == 'deleted'
end
local function frame_of(r, frame)
  local length, ttl = call('STRLEN', frame), call('PTTL', frame)
  if r.tier ~= 'warm' then
    if ttl ~= -2 then wrong('frame-orphan', function() call('UNLINK', frame) end) end
  elseif ttl == -2 then if not r.clean then wrong('lost') end
  elseif length ~= r.frame_bytes then
    wrong(r.clean and 'frame-length' or 'lost', r.clean and function() call('UNLINK', frame) end)
  elseif r.clean and ttl == -1 then
    wrong('frame-no-ttl', function() call('PEXPIRE', frame, call('HGET', LIMITS, 'warm_ttl_ms')) end)
  elseif not r.clean and ttl >= 0 then
    wrong('frame-ttl', function() call('PERSIST', frame) end)
  end
end
local function record_of(r, record)
  local ttl, held, brief = call('PTTL', record), call('HEXISTS', record, 'content') == 1, r.tier == 'deleted' and r.clean
  if brief and ttl == -1 then wrong('tombstone-no-ttl', function() call('PEXPIRE', record, TOMBSTONE_TTL_MS) end)
  elseif not brief and ttl >= 0 then wrong('record-ttl', function() call('PERSIST', record) end) end
  if r.tier == 'hot' and (not held or call('HSTRLEN', record, 'content') ~= r.bytes) then wrong(r.clean and 'hot-content' or 'lost') end
  if r.tier == 'cold' and not r.clean then wrong('lost') end
  if r.tier ~= 'hot' and held then wrong('content-stray', r.clean and function() call('HDEL', record, 'content') end) end
end

for i = 2, #ARGV do
  local id, record, frame = ARGV[i], KEYS[6 + 2 * i], KEYS[7 + 2 * i]
  local is, frame_is = type_of(record), type_of(frame)
  found = {}
  if is ~= 'hash' and is ~= 'none' or frame_is ~= 'string' and frame_is ~= 'none' then wrong('foreign-type')
  elseif is == 'hash' and not well_formed(record) then
    wrong('malformed', function()
      if call('HEXISTS', record, 'content') == 1 or frame_is == 'string' then return false end
      forget(id, record, frame) unlist_id(id)
    end)
  else
    local r = placed(record)
    if is == 'hash' then record_of(r, record) end
    frame_of(r, frame)
  end
  reply[i - 1] = found
end
return {'OK', reply}
