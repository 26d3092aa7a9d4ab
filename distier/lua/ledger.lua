-- flags: allow-oom
-- Changes the ledger of the shards' quotas, unless it was changed since the caller read it.
-- KEYS    1..9 shard 0, 10 the ledger
-- ARGV    version that was read (0: none), write id of this change, fence of the lease of shard 0 ('' if none is needed), the
--         version that a rebuilt ledger must exceed ('' for a change), then name and value of each field ('' removes it)
-- RETURNS {'OK', version} | {'CHANGED', version} | {'FENCED'} | {'TOO_MUCH', budget}
-- KEEPS   the sum of the quotas never exceeds the total, neither now nor after the change in progress. Versions only grow, and
--         those of an epoch of shard 0 are greater than all of the epoch before. So a ledger that came back with an old copy of
--         Redis must be rebuilt before it can be changed
local refused = refuse()
if refused then return refused end
local ledger, flat, epoch = {}, call('HGETALL', KEYS[10]), call('HMGET', EPOCH, 'epoch', 'fence')
for i = 1, #flat, 2 do ledger[flat[i]] = flat[i + 1] end
local version, first = tonumber(ledger.version or 0), tonumber(epoch[1]) * 4294967296
if ledger.write_id == ARGV[2] then return {'OK', ledger.version} end -- sent twice
if ARGV[3] ~= '' and ARGV[3] ~= epoch[2] then return {'FENCED'} end
if version ~= tonumber(ARGV[1]) or version < first and ARGV[4] == '' then return {'CHANGED', string.format('%.0f', version)} end
if ARGV[4] ~= '' then ledger = {total = ledger.total} end
for i = 5, #ARGV, 2 do ledger[ARGV[i]] = ARGV[i + 1] ~= '' and ARGV[i + 1] or nil end

local function amounts(text)
  local n = {}
  for word in string.gmatch(text or '', '%d+') do n[#n + 1] = tonumber(word) end
  return n
end
local now, later, total = {0, 0, 0, 0}, {0, 0, 0, 0}, amounts(ledger.total)
for name, value in pairs(ledger) do
  if string.match(name, '^%d+$') then
    local share, next_share = amounts(value), amounts(ledger['next.' .. name] or value)
    for b = 1, 4 do now[b], later[b] = now[b] + share[b], later[b] + next_share[b] end
  end
end
for b = 1, 4 do
  if math.max(now[b], later[b]) > (total[b] or 0) then return {'TOO_MUCH', b} end
end

version = string.format('%.0f', math.max(version + 1, first, (tonumber(ARGV[4]) or 0) + 1))
if ARGV[4] ~= '' then
  call('UNLINK', KEYS[10])
  if ledger.total then call('HSET', KEYS[10], 'total', ledger.total) end
end
call('HSET', KEYS[10], 'version', version, 'tok', ARGV[2])
for i = 5, #ARGV, 2 do
  if ARGV[i + 1] ~= '' then call('HSET', KEYS[10], ARGV[i], ARGV[i + 1]) else call('HDEL', KEYS[10], ARGV[i]) end
end
return {'OK', version}
