-- flags:
-- Writes new versions, each module separately: dirty, at the next position; or clean, if the version is already archived at its
-- reserved position. For a single module, it makes the required room in the same step.
-- KEYS    1..9 the shard, record, frame and `done` of each module, then record and frame of each move
-- ARGV    number of modules; of each: id, write id, tier ('hot'|'warm'; 'cold' if archived), expected ('' any, '-' none,
--         'epoch-ver'; then '/' and the holder to ignore), reserved epoch, reserved ver ('' both: not archived), archived_bytes,
--         tokens, bytes, frame ('' unless warm), number of further fields (`content` if hot, `codec` if warm), name and value of
--         each (`ttl` first, if there is one); then moves (single module only); last '' or a version before the first attempt (`maybe_applied`)
-- RETURNS {'OK', of each: {'OK', epoch, ver, evicted} | {'REPLAYED', version, tier} | {'CONFLICT', version} | {'UNVERIFIED'}
--         | {'FENCED'} | {'SUPERSEDED', version} | {'UNHELD'} | {'BUSY', holder} | {'UNKNOWN', version} | {'TOO_LARGE'}
--         | {'OVER', ...}}
-- KEEPS   budgets are never exceeded; a dirty version has no TTL; a write id is applied once; positions never go back
local refused = refuse()
if refused then return refused end
local now, modules, k, a, since = now_ms(), {}, 10, 2, ARGV[#ARGV]
for i = 1, tonumber(ARGV[1]) do -- a wrong type fails here, before the first write
  is_listed(ARGV[a])
  modules[i] = {a = a, k = k, old = placed(KEYS[k]), done = call('HGET', KEYS[k + 2], ARGV[a + 1])}
  k, a = k + 3, a + 11 + 2 * tonumber(ARGV[a + 10])
end

local function write(m, i)
  local id, write_id, tier, expected, reserved, ver, archived_bytes, tokens, bytes, body, n = unpack(ARGV, m.a, m.a + 10)
  local record, frame, epoch, clean, done = KEYS[m.k], KEYS[m.k + 1], current_epoch, reserved ~= '', m.done
  local old = i > 1 and placed(record) or m.old -- an earlier one may have evicted it
  if done then
    call('HSET', KEYS[m.k + 2], write_id, done) -- a write, so that WAIT covers the first one
    return {'REPLAYED', done, old.write_id == write_id and old.tier or ''}
  end
  local no = refuse_write(old, record, write_id, expected, reserved, ver, since)
  if no then return no end
  local new = {tier = tier, tokens = tonumber(tokens), bytes = tonumber(bytes), frame_bytes = #body, clean = clean,
    archived_bytes = tonumber(archived_bytes)}
  local limit = limits()
  if tier == 'hot' and (new.tokens > tonumber(limit[1]) or new.bytes > tonumber(limit[2]))
    or tier == 'warm' and (new.frame_bytes > tonumber(limit[4]) or limit[3] == '0') then return {'TOO_LARGE'} end
  next_change() count(old, -1) count(new, 1)
  local moves, over = make_room(k, a, id, now)
  if not moves then count(new, -1) count(old, 1) return over end
  local evicted = apply(moves, 'evict', now)

  if not clean then ver = call('HINCRBY', EPOCH, 'ver', 1) end
  local version, exists = epoch .. '-' .. ver, old.tier ~= 'none' and old.tier ~= 'deleted'
  if exists and is_expired(record, now) then old.created = now end
  local from = exists and old.tier or 'none'
  local reservation = not clean and expected == '' and kept_reservation(old, epoch)
  call('UNLINK', record, frame)
  call('HSET', record, 'tier', tier, 'epoch', epoch, 'ver', ver, 'tok', write_id, 'seen', epoch, 'bytes', bytes, 'tokens', tokens,
    'clean', clean and '1' or '0', 'created', exists and old.created or now, 'updated', now, 'moved', move_of(now, from, tier, 'put'),
    unpack(ARGV, m.a + 11, m.a + 10 + 2 * n))
  if not exists then list_id(id) end
  if reservation then call('HSET', record, 'reserved', reservation) end
  if ARGV[m.a + 11] == 'ttl' then note_expiry(id, record) end
  if tier == 'hot' then become_hot(id, new.tokens, new.bytes) else leave_tiers(id) end
  if tier == 'warm' then call('HSET', record, 'frame_bytes', #body) call('SET', frame, body) keep_frame(id, frame, clean, now) end
  -- since the oldest version that is not archived
  if clean then call('ZREM', DIRTY, id) else call('ZADD', DIRTY, 'NX', score(), id) end
  remember(KEYS[m.k + 2], write_id, version, ver)
  emit(id, from, tier, 'put', version)
  return {'OK', epoch, ver, evicted}
end

local answers = {'OK'}
for i, m in ipairs(modules) do answers[i + 1] = write(m, i) end
settle()
return answers
