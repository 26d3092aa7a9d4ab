-- Shared by all scripts: the loader puts it before each of them.
-- KEYS[1..9] are the shard's own keys. The header of each script describes its further keys.
-- @schema constants

-- The shard's clock in ms, which is the same for all nodes. It follows the server's clock but never goes back: otherwise a clock
-- that is set back, or a slower one after a failover, would reverse the order of last uses. While the server's clock is behind,
-- each use advances this clock by one microsecond.
local clock
local function now_ms()
  local t = call('TIME')
  clock = math.max(t[1] * 1000 + t[2] / 1000, (tonumber(call('HGET', EPOCH, 'clock')) or 0) + 0.001)
  return math.floor(clock)
end
-- A score for now, or for `after` ms later. It is greater than all earlier scores with the same `after`.
local noted
local function score(after)
  if not noted then call('HSET', EPOCH, 'clock', string.format('%.3f', clock)) noted = true end
  return string.format('%.3f', clock + (after or 0))
end

-- The replication id of this server. It changes with each restart, promotion or loss of data. '' if INFO is not allowed.
local function replid()
  local info = redis.pcall('INFO', 'replication')
  return type(info) == 'string' and string.match(info, 'master_replid:(%x+)') or ''
end

-- Returns nil if this shard can be used; otherwise the reply with which the script must end. An epoch belongs to the incarnation
-- of the server in which it was installed. Another incarnation may have lost acknowledged writes, and must claim a new epoch.
--
-- Redis does not undo the writes of a script that fails. So a shard's key of the wrong type fails the call here, and the keys of
-- modules are read before the first write. (One ZINTERCARD would check all sets, but it walks the smallest one.)
--
-- `policy` is the eviction policy if it is not `lru`. Then HOT_RANK and WARM_RANK have the order of eviction; `ranked` says that they
-- are complete. Until then, after a change of the policy, the order is that of HOT and WARM, which keep the times of the last uses.
--
-- `dictionary` names the shard's current dictionary for warm copies; '' if there is none.
local current_epoch, policy, ranked, recording, victims_worth, dictionary
local function refuse()
  for _, zset in ipairs({HOT, WARM, DIRTY, USES, PINS}) do call('ZCARD', zset) end
  call('HLEN', LIMITS) call('HLEN', USAGE) call('XLEN', EVENTS)
  local e, incarnation = call('HMGET', EPOCH, 'epoch', 'layout', 'replid', 'eviction', 'ranked', 'recording', 'worth', 'dictionary'), replid()
  if e[2] and e[2] ~= LAYOUT then return {'LAYOUT', e[2]} end
  if not e[1] or incarnation ~= '' and e[3] ~= incarnation then return {'RECOVERING'} end
  current_epoch, recording, victims_worth, dictionary = e[1], e[6], tonumber(e[7] or WORTH_FIRST) or WORTH_FIRST, e[8] or ''
  if e[4] and e[4] ~= 'lru' then
    policy, ranked = e[4], e[5]
    call('ZCARD', HOT_RANK) call('ZCARD', WARM_RANK)
  end
  return nil
end

-- Adds uses (id, number, ...) to READS while somebody records them: until `recording`, in ms. READS is no key of the namespace's
-- modules, so a wrong type there fails nothing.
local function record_uses(now, ...)
  if recording and now < (tonumber(recording) or 0) then redis.pcall('XADD', ROOT .. 'reads', 'MAXLEN', '~', READS_MAX, '*', ...) end
end

-- @schema ranks

-- The keys of a module that is not among KEYS, as `Shard.module` and `Shard.frame` in Python return them.
local function encode_id(id)
  if not string.find(id, '[^%w_:=+,~%-/.]') and not string.find('/' .. id .. '/', '/[/.]') then return id end
  local out, before = {}, nil
  for segment in string.gmatch(id .. '/', '([^/]*)/') do
    if before then out[#out + 1] = before ~= '' and segment ~= '' and '/' or '%2F' end
    before = segment
    local is_dots = segment == '.' or segment == '..'
    segment = string.gsub(segment, '[^%w!#$&()+,%-./:;<=>@^_`|~]', function(c) return string.format('%%%02X', string.byte(c)) end)
    segment = string.gsub(segment, '^@', '%%40')
    out[#out + 1] = is_dots and string.gsub(segment, '%.', '%%2E') or segment
  end
  return table.concat(out)
end

local function keys_of(id)
  local name = encode_id(id)
  return ROOT .. 'module:' .. name, ROOT .. 'warm:' .. name
end

-- The index of ids: the ids of all modules in the order of their bytes, in sorted sets of at most CHUNK_MAX members. IDS has the
-- first id of each of these chunks but the first one. So a listing begins anywhere and costs no more in a large namespace.
local IDS = ROOT .. 'ids'
local function chunk_of(id)
  local first = call('ZRANGE', IDS, '[' .. id, '-', 'BYLEX', 'REV', 'LIMIT', 0, 1)[1]
  return ROOT .. 'ids:' .. (first and encode_id(first) or ''), first
end
-- Whether an id is in the index, and its chunk. A wrong type fails here, so it is called before the first write.
local function is_listed(id)
  local chunk = chunk_of(id)
  return call('ZSCORE', chunk, id) and true or false, chunk
end
-- Adds an id to its chunk. A full chunk is divided in the middle; at its end if the id is the greatest, so that ids that come in
-- order fill their chunks. Returns whether it was divided: then other ids may have another chunk.
local function list_in(chunk, id)
  if call('ZADD', chunk, 0, id) == 0 or call('ZCARD', chunk) <= CHUNK_MAX then return false end
  local ids = call('ZRANGE', chunk, 0, -1)
  local at, members = ids[#ids] == id and #ids or math.floor(#ids / 2) + 1, {}
  for i = at, #ids do members[#members + 1] = 0 members[#members + 1] = ids[i] end
  call('ZREM', chunk, unpack(ids, at))
  call('ZADD', ROOT .. 'ids:' .. encode_id(ids[at]), unpack(members))
  call('ZADD', IDS, 0, ids[at])
  return true
end
local function list_id(id) return list_in((chunk_of(id)), id) end
local function unlist_id(id)
  local chunk, first = chunk_of(id)
  call('ZREM', chunk, id)
  if first and call('EXISTS', chunk) == 0 then call('ZREM', IDS, first) end
end

-- The placement of a module according to its record; tier 'none' if there is no record. A damaged record counts as version 0-0:
-- any write is later and replaces it.
local function placed(key)
  local f = call('HMGET', key, 'tier', 'tok', 'tokens', 'bytes', 'clean', 'frame_bytes', 'archived_bytes', 'epoch', 'ver',
    'created', 'reserved')
  local function number(i) return tonumber(f[i] or 0) or 0 end
  return {
    tier = f[1] or 'none', write_id = f[2] or '', tokens = number(3), bytes = number(4), clean = f[5] == '1', epoch = number(8),
    ver = number(9), frame_bytes = number(6), archived_bytes = number(7),
    version = f[1] and ((f[8] or '0') .. '-' .. (f[9] or '0')) or '', created = f[10], reserved = f[11] or '',
  }
end

-- A module with a TTL: its record has `ttl`, in ms after `updated`. EXPIRING names all of them, by the time at which they expire. It may
-- also name others and have other times, so whoever reads it compares it with the records (`lapse`). A wrong type there fails nothing.
local EXPIRING = ROOT .. 'expiring'
local function expiry_of(record)
  local f = call('HMGET', record, 'updated', 'ttl')
  local ttl = tonumber(f[2] or nil)
  return ttl and (tonumber(f[1] or 0) or 0) + ttl
end
local function note_expiry(id, record)
  local at = expiry_of(record)
  if at then redis.pcall('ZADD', EXPIRING, string.format('%.0f', at), id) end
end
-- Whether a module is past its TTL: readers do not see it any more.
local function is_expired(record, now)
  local at = expiry_of(record)
  return at and now >= at or false
end

-- Accounting: `count(p, -1)` subtracts a placement from the sums, and `count(p, 1)` adds it. `next_change` starts the next of
-- several changes, each of which is checked separately. `settle` writes them all.
local delta, earlier = {}, {}
local function add(field, n)
  if n ~= 0 then delta[field] = (delta[field] or 0) + n end
end
-- @schema accounts
local function next_change()
  for field, n in pairs(delta) do earlier[field] = (earlier[field] or 0) + n end
  delta = {}
end
local function settle()
  next_change()
  local fields, sums = {}, {}
  for field, n in pairs(earlier) do
    if n ~= 0 then fields[#fields + 1] = field end
  end
  if #fields == 0 then return end
  for i, sum in ipairs(call('HMGET', USAGE, unpack(fields))) do
    sums[2 * i - 1], sums[2 * i] = fields[i], string.format('%.0f', (tonumber(sum) or 0) + earlier[fields[i]])
  end
  call('HSET', USAGE, unpack(sums))
end

-- Checks the four budgets after the earlier changes and the current one. A budget rejects only changes that add to it: a lowered
-- limit stops growth, but never a move that frees room. Only `settle` writes USAGE, at the end, so LIMITS and USAGE are read once.
-- Returns whether all fit, the excess over each, and whether those of hot fit.
local limit, used
local function limits()
  limit = limit or read_limits()
  return limit
end
local function budgets()
  limits()
  used = used or read_used()
  local over, fits, hot_fits = {}, true, true
  for i, field in ipairs(budget_fields()) do
    local change = delta[field] or 0
    over[i] = tonumber(used[i] or 0) + (earlier[field] or 0) + change - tonumber(limit[i])
    if change > 0 and over[i] > 0 then fits = false end
    if i == 2 then hot_fits = fits end
  end
  return fits, over, hot_fits
end

-- The value of a record's field `moved`.
local function move_of(now, from, to, reason) return string.format('%.0f %s %s %s', now, from, to, reason) end

local events_max
local function emit(id, from, to, reason, version)
  events_max = events_max or call('HGET', LIMITS, 'events_max') or '10000'
  call('XADD', EVENTS, 'MAXLEN', '~', events_max, '*',
    'id', id, 'from', from, 'to', to, 'reason', reason, 'version', version)
end

-- Writes a clean tombstone. It stays for ten minutes, so that an older durable write in progress cannot be applied after it.
local function bury(record, epoch, ver, write_id, now)
  call('HSET', record, 'tier', 'deleted', 'epoch', epoch, 'ver', ver, 'tok', write_id, 'seen', call('HGET', EPOCH, 'epoch'),
    'bytes', 0, 'clean', '1', 'updated', now)
  call('PEXPIRE', record, TOMBSTONE_TTL_MS)
end

-- Whether `old` is later than the version epoch-ver.
local function comes_after(old, epoch, ver)
  return old.tier ~= 'none' and (old.epoch > epoch or old.epoch == epoch and old.ver > ver)
end

-- Whether a record, or its absence, is known to be current. A record of an older epoch is not, until it was compared with the
-- archive.
local function is_checked(record)
  local e = call('HMGET', EPOCH, 'epoch', 'verified')
  return math.max(tonumber(call('HGET', record, 'seen') or 0), tonumber(e[2] or 0)) >= tonumber(e[1])
end

-- The position that a durable write has reserved: `epoch-ver-deleted-write id`; void in another epoch. Unconditional writes keep
-- the reservation (`deleted` is 1 once one of them was a delete). It ends when its holder is applied, or when a conditional or
-- durable write ignores it because its holder seems to have died. So if a holder does not find its reservation, another write
-- ignored it; if it does, only unconditional writes came in between. Returns ver (0: there is none), write id, deleted.
local function reservation(old, epoch)
  local e, ver, deleted, write_id = string.match(old.reserved, '^(%d+)-(%d+)-(%d+)-(%x*)$')
  if e ~= epoch then return 0, '', false end
  return tonumber(ver), write_id, deleted ~= '0'
end
-- Rejects a conditional write while another write holds a position, unless the caller has given up on this holder.
local function busy(old, epoch, write_id, given_up)
  local position, holder = reservation(old, epoch)
  if position > 0 and holder ~= write_id and holder ~= given_up then return {'BUSY', holder} end
  return nil
end
-- Returns nil if a write that is archived as epoch-ver may be applied; otherwise the reply. A write that does not hold its position
-- cannot know what happened to its object: it may have been adopted, and the module may have changed since.
local function not_applicable(old, epoch, ver, write_id)
  if old.epoch == tonumber(epoch) and old.ver == ver and string.sub(old.write_id, 1, 8) == string.sub(write_id, 1, 8) then
    return {'REPLAYED', old.version, old.tier} -- adopted
  end
  local position, holder, deleted = reservation(old, epoch)
  if position ~= ver or holder ~= write_id then return {'UNHELD'} end
  if comes_after(old, tonumber(epoch), ver) then return {'SUPERSEDED', old.version, deleted and '1' or '0'} end
  return nil
end
-- The value of the reservation after an unconditional write.
local function kept_reservation(old, epoch, deletes)
  local position, holder, deleted = reservation(old, epoch)
  if position == 0 then return nil end
  return string.format('%s-%.0f-%d-%s', epoch, position, (deleted or deletes) and 1 or 0, holder)
end

-- The applied writes by write id, so that a repeated write gets its reply and is not applied again. The hash has the last 8192
-- writes of the shard; each replaces the one 8192 versions before it. (A TTL would depend on clock jumps and evictions.)
local function remember(done, write_id, version, ver)
  local slot = '#' .. string.format('%.0f', tonumber(ver) % DONE_MAX)
  local before = call('HGET', done, slot)
  if before then call('HDEL', done, before) end
  call('HSET', done, slot, write_id, write_id, version)
end
-- The reply to a repeated write whose first reply was lost and that is not in `done`; nil if it was certainly not applied.
-- `since` is a version from before the write was first sent ('' at the first attempt), so it was applied after that, if at all.
-- It was not applied if the record is not later, or if fewer versions were assigned since then than `done` keeps.
local function maybe_applied(old, record, since)
  if since == '' then return nil end
  local e, v = string.match(since, '^(%d+)-(%d+)$')
  e, v = tonumber(e), tonumber(v)
  local now = call('HMGET', EPOCH, 'epoch', 'ver')
  if e == tonumber(now[1]) and tonumber(now[2]) - v < DONE_MAX then return nil end
  if not is_checked(record) then return {'UNVERIFIED'} end
  if not comes_after(old, e, v) then return nil end
  return {'UNKNOWN', old.version}
end

-- The reply if the current version is not the one that the caller expects; nil if it is.
local function unexpected(old, record, expected)
  if expected == '' then return nil end
  if not is_checked(record) then return {'UNVERIFIED'} end
  local exists = old.tier ~= 'none' and old.tier ~= 'deleted'
  if expected == '-' and exists and not is_expired(record, clock or now_ms()) or expected ~= '-' and not (exists and expected == old.version) then
    return {'CONFLICT', exists and old.version or ''}
  end
  return nil
end

-- The reply to a write that must not be applied, checked before its room; nil if it may be applied. A write that is archived already
-- has its position in `reserved` (the epoch; '' for all other writes) and `ver`.
local function refuse_write(old, record, write_id, expected, reserved, ver, since)
  local version, given_up = string.match(expected, '^([^/]*)/?(.*)$')
  if reserved == '' then
    return maybe_applied(old, record, since) or unexpected(old, record, version)
      or version ~= '' and busy(old, current_epoch, write_id, given_up) or nil
  end
  if reserved ~= current_epoch then return {'FENCED'} end
  return not_applicable(old, reserved, tonumber(ver), write_id) or unexpected(old, record, version)
end

-- Removes a module from the sets of hot and warm.
local function leave_tiers(id)
  call('ZREM', HOT, id)
  call('ZREM', WARM, id)
  if policy then call('ZREM', HOT_RANK, id) call('ZREM', WARM_RANK, id) end
end
-- Removes a module from all sets, and deletes its keys, including `record`.
local function forget(id, record, frame)
  call('UNLINK', record, frame)
  leave_tiers(id)
  for _, zset in ipairs({DIRTY, USES}) do call('ZREM', zset, id) end
  redis.pcall('ZREM', EXPIRING, id)
end
