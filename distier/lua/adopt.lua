-- flags:
-- Reconciles records with the archive: a greater version in the archive replaces the record.
-- KEYS    1..9 the shard, then record and frame of each id
-- ARGV    epoch in which the archive was listed, '1' if this ends a complete listing, the holder to ignore ('' none), then for
--         each id: id, epoch, ver, write id (8 characters suffice), kind ('content'|'deleted'|'none'), tokens, bytes,
--         archived_bytes, write id of a lost version ('' none), number of further fields, name and value of each
-- RETURNS {'OK', number adopted, verified, the last holder of a position that prevented an adoption ('' none)} | {'CHANGED'} if
--         the shard is in another epoch now
-- KEEPS   only a greater version replaces a record; any version replaces a cold record whose object is lost; checked records are
--         marked `seen`; the shard is `verified` only after a complete listing
local refused = refuse()
if refused then return refused end
local epoch = current_epoch
if epoch ~= ARGV[1] then return {'CHANGED'} end
local a, k, adopted, prevents, now = 4, 10, 0, '', now_ms()
for i = k, #KEYS, 2 do placed(KEYS[i]) end -- a wrong type fails here, before the first write
local next_id = a
while ARGV[next_id] do
  is_listed(ARGV[next_id])
  next_id = next_id + 10 + 2 * tonumber(ARGV[next_id + 9])
end
while ARGV[a] do
  local id, kind, record, n = ARGV[a], ARGV[a + 4], KEYS[k], tonumber(ARGV[a + 9])
  local old = placed(record)
  local e, v, write_id = tonumber(ARGV[a + 1]), tonumber(ARGV[a + 2]), ARGV[a + 3]
  local newer = kind ~= 'none' and (old.tier == 'none' or e > old.epoch or e == old.epoch and (v > old.ver
    or v == old.ver and string.sub(write_id, 1, 8) > string.sub(old.write_id, 1, 8))
    or old.tier == 'cold' and old.clean and old.write_id == ARGV[a + 8])
  -- not while a durable write of this epoch holds a position after it, and not that write itself; a holder that is ignored
  -- loses its position. Never an earlier object of the holder, which may still put the later one: it would take effect twice
  local position, holder = reservation(old, epoch)
  local current = tonumber(epoch)
  if newer and position > 0 and (e < current or e == current and v <= position)
    and (holder ~= ARGV[3] or e < current and string.sub(write_id, 1, 8) == string.sub(holder, 1, 8)) then
    newer, prevents = false, holder
  end
  if newer then
    count(old, -1)
    local created = old.tier ~= 'none' and call('HGET', record, 'created')
    forget(id, record, KEYS[k + 1])
    if kind == 'deleted' then unlist_id(id) else list_id(id) end
    if kind == 'deleted' then
      call('ZREM', PINS, id)
      bury(record, e, v, write_id, now)
    else
      local new = {tier = 'cold', tokens = tonumber(ARGV[a + 5]), bytes = tonumber(ARGV[a + 6]), clean = true,
        archived_bytes = tonumber(ARGV[a + 7])}
      count(new, 1)
      call('HSET', record, 'created', created or now, 'updated', now, 'moved', move_of(now, old.tier, 'cold', 'recover'), unpack(ARGV, a + 10, a + 9 + 2 * n))
      call('HSET', record, 'tier', 'cold', 'epoch', e, 'ver', v, 'tok', write_id, 'tokens', ARGV[a + 5], 'bytes', ARGV[a + 6],
        'clean', '1', 'archived_bytes', ARGV[a + 7], 'seen', epoch)
      note_expiry(id, record)
    end
    emit(id, old.tier, kind == 'deleted' and 'deleted' or 'cold', 'recover', e .. '-' .. v)
    adopted = adopted + 1
  elseif old.tier == 'none' then
    bury(record, 0, 0, '', now) -- records for a while that the module does not exist
  elseif call('HGET', record, 'seen') ~= epoch then
    call('HSET', record, 'seen', epoch)
  end
  a, k = a + 10 + 2 * n, k + 2
end
settle()
if ARGV[2] == '1' then call('HSET', EPOCH, 'verified', epoch) end
return {'OK', adopted, call('HGET', EPOCH, 'verified') or '0', prevents}
