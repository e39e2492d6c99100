#!lua name=raycommend_store_@VERSION@

-- The server-side half of the online store: everything that must be one atomic step.
-- @VERSION@ is replaced by a hash of this file and streams.lua, which is loaded behind it, so that old and new processes
-- can share a server during a rolling upgrade: each calls the functions it was written for. Formats are those of
-- models/store/codec.py.

local SCHEMA = 1
local RECORD_HEADER = 14
local INTENT_HEADER = 9
local SEEN_HEADER = "\1seen\0\0\0" -- its first byte is SCHEMA; no library exists while this loads
local DECLARED_HEADER = 13
local PER_OWNER = 6 -- keys of an owner in one call of `append`
local WINDOW_MS = 5000

-- Time of a ring record in ms, or nil where the bytes are not a record of this schema.
local function time_of(record)
  if #record < RECORD_HEADER or string.byte(record, 1) ~= SCHEMA then return nil end
  return (struct.unpack(">i8", record, 3))
end

-- Put a record into the ring, which is ordered by time and, within one time, by arrival.
-- LINSERT finds the first equal value: the pivot is the first record that is newer, so no equal one precedes it.
local function push(ring, record, limit, newest)
  local length
  local time, newest_time = time_of(record), newest and time_of(newest)
  if newest and not (newest_time and newest_time <= time) then
    for _, other in ipairs(redis.call("LRANGE", ring, 0, -1)) do
      local other_time = time_of(other)
      if other_time and other_time > time then
        length = redis.call("LINSERT", ring, "BEFORE", other, record)
        break
      end
    end
  end
  length = length or redis.call("RPUSH", ring, record)
  if length > limit then redis.call("LTRIM", ring, -limit, -1) end
end

-- Whether one of the last `limit` hashes of `seen` equals `hash`; a hit between two hashes is no hit.
local function has(seen, hash, limit)
  local from = math.max(#SEEN_HEADER + 1, #seen - limit * 8 + 1)
  while true do
    local at = string.find(seen, hash, from, true)
    if not at then return false end
    if (at - 1) % 8 == 0 then return true end
    from = at + 1
  end
end

-- The seen set under a key, started anew where there is none or the bytes are not one.
local function load_seen(key)
  local seen = redis.call("GET", key)
  if not seen or string.sub(seen, 1, 8) ~= SEEN_HEADER or #seen % 8 ~= 0 then
    seen = SEEN_HEADER
    redis.call("SET", key, seen)
  end
  return seen
end

-- Add a hash that the seen set lacks; returns the set. Cutting waits until an eighth is surplus, because it rewrites it.
local function see(key, seen, hash, limit)
  seen = seen .. hash
  if (#seen - 8) / 8 > limit + limit / 8 then
    seen = SEEN_HEADER .. string.sub(seen, -limit * 8)
    redis.call("SET", key, seen)
  else
    redis.call("APPEND", key, hash)
  end
  return seen
end

-- Whether a record says what the newest of the ring says (type, value, item) at most `window` ms before or after it.
local function repeats(record, newest, window)
  local time = window > 0 and newest and time_of(newest)
  return time and math.abs(time_of(record) - time) <= window
    and string.byte(record, 2) == string.byte(newest, 2) and string.sub(record, 11) == string.sub(newest, 11)
end

-- The second that an owner's new events count in, and how many it has. A clock that is behind counts in the newest second
-- there is: two clocks make no two allowances.
local function window_of(key, now)
  local second, held = math.floor(now / 1000), redis.call("GET", key)
  local newest, count = string.match(held or "", "^(%d+):(%d+)$")
  if newest and tonumber(newest) >= second then return {second = newest, count = tonumber(count), old = true} end
  return {second = string.format("%.0f", second), count = 0}
end

-- A key of its own with a short life, not a field of the profile: who only looks or searches has no profile. Its life
-- is not renewed, so that a clock that is far ahead harms for that long at most.
local function keep_window(key, window)
  local text = window.second .. ":" .. window.count
  if window.old then redis.call("SET", key, text, "KEEPTTL") else redis.call("SET", key, text, "PX", WINDOW_MS) end
end

-- Keep an intent, unless a newer one is there or it is too old to say anything; of equal times the later to come stays.
-- Its key lives as long as it has something to say.
local function want(key, intent, now, life)
  local time, held = struct.unpack(">i8", intent, 2), redis.call("GET", key)
  local left = math.min(time, now) + life - now
  local sound = held and #held > INTENT_HEADER and string.byte(held, 1) == SCHEMA
  if left < 1 or (sound and struct.unpack(">i8", held, 2) > time) then return end
  redis.call("SET", key, intent, "PX", string.format("%.0f", left))
end

-- Keep a declaration, unless a later one is there; of equal times what is there stays.
local function say(key, declared)
  if #declared <= DECLARED_HEADER or string.byte(declared, 1) ~= SCHEMA then return end
  local held = redis.call("GET", key)
  local sound = held and #held > DECLARED_HEADER and string.byte(held, 1) == SCHEMA
  if sound and struct.unpack(">i8", held, 2) >= struct.unpack(">i8", declared, 2) then return end
  redis.call("SET", key, declared)
end

-- KEYS: declaration of an owner. ARGV: its bytes (empty: none), its life in ms (0: for ever). Replaces what was declared.
-- Taking it back is a write too, so that WAITAOF after a retry covers the first attempt.
local function declare(keys, args)
  if args[1] == "" then
    redis.call("SET", keys[1], "", "PX", 1)
  elseif args[2] == "0" then
    redis.call("SET", keys[1], args[1])
  else
    redis.call("SET", keys[1], args[1], "PX", args[2])
  end
end

-- KEYS: stream; ring, seen, profile, intent, declaration, window of each owner; dedupe key of each event.
-- ARGV: now ms, dedupe ms, ring limit, seen limit, stream length (0: profiles only), time in ms within which the same is a
-- repeat (0: never), new events of an owner in a second (0: any number), life of an intent in ms, number of owners; life in
-- ms of each owner (0: for ever); owner number, ring record, item hash, stream payload, intent of each event (record and
-- hash empty: stream only; intent empty: none).
-- Returns 0 (duplicate), 1 (accepted), 2 (repeat) or 3 (limited) for each event.
-- A stream entry is `d` (the payload) and what only this step knows: `n` where the owner had not seen the item, `p` with
-- the record that was the newest of the ring.
local function append(keys, args)
  local now, dedupe, ring_limit, seen_limit = args[1], args[2], tonumber(args[3]), tonumber(args[4])
  local same_ms, per_second, owners = tonumber(args[6]), tonumber(args[7]), tonumber(args[9])
  local statuses, seen, taken, windows = {}, {}, {}, {}
  local event, at = 0, 9 + owners + 1
  while args[at] do
    event = event + 1
    local once = keys[1 + owners * PER_OWNER + event]
    local owner, record, hash = tonumber(args[at]), args[at + 1], args[at + 2]
    local base = 1 + (owner - 1) * PER_OWNER
    if per_second > 0 and not windows[owner] then windows[owner] = window_of(keys[base + 6], tonumber(now)) end
    local window = windows[owner]
    if redis.call("EXISTS", once) == 1 then
      -- Changes nothing, yet is a write: WAITAOF after a retry then also covers the first attempt.
      redis.call("SET", once, SCHEMA, "KEEPTTL")
      statuses[event] = 0
    elseif window and window.count >= per_second then
      statuses[event] = 3
    else
      local entry, new = {"d", args[at + 3]}, false
      local newest = record ~= "" and redis.call("LINDEX", keys[base + 1], -1)
      if newest and repeats(record, newest, same_ms) then
        statuses[event] = 2
      else
        if record ~= "" then
          seen[owner] = seen[owner] or load_seen(keys[base + 2])
          new = not has(seen[owner], hash, seen_limit)
          if new then entry[3], entry[4] = "n", "1" end
          if newest then entry[#entry + 1], entry[#entry + 2] = "p", newest end
        end
        if args[5] ~= "0" then redis.call("XADD", keys[1], "MAXLEN", "~", args[5], "*", unpack(entry)) end
        if record ~= "" then
          push(keys[base + 1], record, ring_limit, newest)
          if new then seen[owner] = see(keys[base + 2], seen[owner], hash, seen_limit) end
          taken[owner] = (taken[owner] or 0) + 1
        end
        if args[at + 4] ~= "" then want(keys[base + 4], args[at + 4], tonumber(now), tonumber(args[8])) end
        statuses[event] = 1
      end
      -- Last: where a step above fails, a retry is not mistaken for a duplicate.
      redis.call("SET", once, SCHEMA, "PX", dedupe)
      -- A repeat counts too: what is remembered of it takes room.
      if window then window.count, window.changed = window.count + 1, true end
    end
    at = at + 5
  end
  for owner, window in pairs(windows) do
    if window.changed then keep_window(keys[1 + (owner - 1) * PER_OWNER + 6], window) end
  end
  for owner, count in pairs(taken) do
    local base, life = 1 + (owner - 1) * PER_OWNER, args[9 + owner]
    redis.call("HSET", keys[base + 3], "v", SCHEMA, "updated_ms", now)
    redis.call("HINCRBY", keys[base + 3], "events", count)
    if life ~= "0" then
      for i = 1, 5 do
        if i ~= 4 then redis.call("PEXPIRE", keys[base + i], life) end
      end
    end
  end
  return statuses
end

-- KEYS: ring, seen, intent, declaration. ARGV: seen limit. Returns the records' headers as one string, their item ids joined
-- by NUL, the seen set, how many records were left out because they cannot be read, the intent and the declaration (empty:
-- none): six replies, not 259 for a client to take apart.
local function fetch(keys, args)
  local heads, items, kept = {}, {}, 0
  local ring = redis.call("LRANGE", keys[1], 0, -1)
  for _, record in ipairs(ring) do
    local readable = #record > RECORD_HEADER and string.byte(record, 1) == SCHEMA
    if readable and not string.find(record, "\0", RECORD_HEADER + 1, true) then
      kept = kept + 1
      heads[kept] = string.sub(record, 1, RECORD_HEADER)
      items[kept] = string.sub(record, RECORD_HEADER + 1)
    end
  end
  local seen = redis.call("GET", keys[2]) or ""
  local limit = tonumber(args[1]) * 8
  if #seen > limit + 8 then seen = string.sub(seen, 1, 8) .. string.sub(seen, -limit) end
  local intent, declared = redis.call("GET", keys[3]) or "", redis.call("GET", keys[4]) or ""
  return {table.concat(heads), table.concat(items, "\0"), seen, #ring - kept, intent, declared}
end

-- KEYS: ring, seen, profile, intent, declaration. ARGV: seen limit. Returns the ring's records, the seen hashes, and what
-- `forget` compares: how many events ever reached the profile, the intent and the declaration (empty: none).
local function peek(keys, args)
  local seen = redis.call("GET", keys[2]) or ""
  if string.sub(seen, 1, 8) ~= SEEN_HEADER or #seen % 8 ~= 0 then seen = SEEN_HEADER end
  local from = math.max(#SEEN_HEADER + 1, #seen - tonumber(args[1]) * 8 + 1)
  local events, intent = redis.call("HGET", keys[3], "events") or "0", redis.call("GET", keys[4]) or ""
  local declared = redis.call("GET", keys[5]) or ""
  return {redis.call("LRANGE", keys[1], 0, -1), string.sub(seen, from), events, intent, declared}
end

-- Add hashes to a seen set, each as `has` and `see` would, in time that does not grow with the square of the set.
local function see_all(key, hashes, limit)
  local seen = load_seen(key)
  local order, known, first, last, changed = {}, {}, 1, 0, false
  local function add(text, at)
    local hash = string.sub(text, at, at + 7)
    if known[hash] then return end
    last = last + 1
    order[last], known[hash], changed = hash, true, true
    if last - first + 1 > limit then
      known[order[first]] = nil
      first = first + 1
    end
  end
  for at = math.max(#SEEN_HEADER + 1, #seen - limit * 8 + 1), #seen, 8 do add(seen, at) end
  changed = false
  for at = 1, #hashes, 8 do add(hashes, at) end
  if changed then redis.call("SET", key, SEEN_HEADER .. table.concat(order, "", first, last)) end
end

-- KEYS: ring, seen, profile, intent, declaration of an owner. ARGV: now ms, ring limit, seen limit, seen hashes, intent
-- (empty: none), its life in ms, declaration (empty: none); records of another ring, in order. Takes all of it over. A record that the ring holds as often already is not taken again, so that doing this twice has
-- the effect of once. Equal times: what the ring held first. Returns how many records were taken.
local function link(keys, args)
  local ring, held, missing = redis.call("LRANGE", keys[1], 0, -1), {}, {}
  for _, record in ipairs(ring) do held[record] = (held[record] or 0) + 1 end
  for i = 8, #args do
    local record = args[i]
    if (held[record] or 0) > 0 then
      held[record] = held[record] - 1
    elseif time_of(record) then
      missing[#missing + 1] = record
    end
  end
  if #missing > 0 then
    local merged, at, time = {}, 1, 0
    for _, record in ipairs(ring) do
      time = time_of(record) or time -- what another version wrote stays where it is
      while missing[at] and time_of(missing[at]) < time do
        merged[#merged + 1] = missing[at]
        at = at + 1
      end
      merged[#merged + 1] = record
    end
    for i = at, #missing do merged[#merged + 1] = missing[i] end
    redis.call("DEL", keys[1])
    redis.call("RPUSH", keys[1], unpack(merged, math.max(1, #merged - tonumber(args[2]) + 1)))
  end
  if args[4] ~= "" then see_all(keys[2], args[4], tonumber(args[3])) end
  if #args[5] > INTENT_HEADER and string.byte(args[5], 1) == SCHEMA then
    want(keys[4], args[5], tonumber(args[1]), tonumber(args[6]))
  end
  say(keys[5], args[7])
  -- A write even where nothing is new: WAITAOF after a retry then also covers the first attempt.
  redis.call("HSET", keys[3], "v", SCHEMA, "updated_ms", args[1])
  redis.call("HINCRBY", keys[3], "events", #missing)
  return #missing
end

-- KEYS: ring, seen, profile, intent, declaration. ARGV: events, intent, declaration. Removes a profile that nothing reached
-- since `peek` told these three; 1 or 0.
local function forget(keys, args)
  if (redis.call("HGET", keys[3], "events") or "0") ~= args[1] then return 0 end
  -- One that has ended meanwhile is no reason to stay.
  local intent = redis.call("GET", keys[4])
  if intent and intent ~= args[2] then return 0 end
  local declared = redis.call("GET", keys[5])
  if declared and declared ~= args[3] then return 0 end
  redis.call("DEL", unpack(keys))
  return 1
end

-- KEYS: release pointer. ARGV: text, expected epoch. Returns 1 when the pointer moved, 0 when the epoch differs.
local function move_release(keys, args)
  local epoch = redis.call("HGET", keys[1], "epoch") or "0"
  if epoch ~= args[2] then return 0 end
  redis.call("HSET", keys[1], "v", SCHEMA, "text", args[1], "epoch", tonumber(epoch) + 1)
  return 1
end

-- KEYS: meta. ARGV: buckets, schema. Fixes both at the first start; returns what is fixed.
local function fix_meta(keys, args)
  redis.call("HSETNX", keys[1], "buckets", args[1])
  redis.call("HSETNX", keys[1], "schema", args[2])
  return redis.call("HMGET", keys[1], "buckets", "schema")
end

-- KEYS: item log, its last number. ARGV: most changes it may hold; change, vector. Returns the change's number, 0 where
-- the log is full. The number is kept apart, so that it goes on rising when the log is cut.
local function item_append(keys, args)
  if redis.call("XLEN", keys[1]) >= tonumber(args[1]) then return 0 end
  local sequence = redis.call("INCR", keys[2])
  redis.call("XADD", keys[1], sequence .. "-0", "d", args[2], "e", args[3])
  return sequence
end

-- KEYS: item log, its last number. ARGV: a number. The log goes on above that number: a release knows changes up to it.
local function item_floor(keys, args)
  if tonumber(redis.call("GET", keys[2]) or "0") < tonumber(args[1]) then redis.call("SET", keys[2], args[1]) end
end

local function now_ms()
  local time = redis.call("TIME")
  return tonumber(time[1]) * 1000 + math.floor(tonumber(time[2]) / 1000)
end

-- KEYS: proposal. ARGV: text, release id, publisher, time to live in ms. Returns nothing, or the id that somebody else
-- proposes.
local function propose(keys, args)
  local held = redis.call("HMGET", keys[1], "id", "by")
  if held[1] and held[1] ~= args[2] and held[2] ~= args[3] then return held[1] end
  redis.call("HSET", keys[1], "text", args[1], "id", args[2], "by", args[3])
  redis.call("PEXPIRE", keys[1], args[4])
end

-- KEYS: proposal. ARGV: publisher.
local function withdraw(keys, args)
  if redis.call("HGET", keys[1], "by") == args[1] then redis.call("DEL", keys[1]) end
end

-- KEYS: standings. ARGV: replica, what it says. The time goes before it.
local function report(keys, args)
  redis.call("HSET", keys[1], args[1], string.format("%.0f:", now_ms()) .. args[2])
end

-- KEYS: standings. ARGV: greatest age in ms. Returns replica, what it said, …; what is older is removed.
local function standings(keys, args)
  local oldest, found = now_ms() - tonumber(args[1]), {}
  local all = redis.call("HGETALL", keys[1])
  for i = 1, #all, 2 do
    local at, body = string.match(all[i + 1], "^(%d+):(.*)$")
    if at and tonumber(at) >= oldest then
      found[#found + 1] = all[i]
      found[#found + 1] = body
    else
      redis.call("HDEL", keys[1], all[i])
    end
  end
  return found
end

redis.register_function("rc_append_@VERSION@", append)
redis.register_function("rc_declare_@VERSION@", declare)
redis.register_function("rc_item_floor_@VERSION@", item_floor)
redis.register_function("rc_propose_@VERSION@", propose)
redis.register_function("rc_withdraw_@VERSION@", withdraw)
redis.register_function("rc_report_@VERSION@", report)
redis.register_function("rc_standings_@VERSION@", standings)
redis.register_function("rc_item_append_@VERSION@", item_append)
redis.register_function{function_name = "rc_fetch_@VERSION@", callback = fetch, flags = {"no-writes"}}
redis.register_function{function_name = "rc_peek_@VERSION@", callback = peek, flags = {"no-writes"}}
redis.register_function("rc_link_@VERSION@", link)
redis.register_function("rc_forget_@VERSION@", forget)
redis.register_function("rc_move_release_@VERSION@", move_release)
redis.register_function("rc_fix_meta_@VERSION@", fix_meta)
