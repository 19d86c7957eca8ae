-- Writes all of it or nothing: only when everything the operation looked at is still as it was, and only once.
--
-- KEYS: the token of this commit; what our keys begin with.
-- ARGV: the token's life in milliseconds; how many checks, and for each a hash, a field and the value it must have (empty: none); then
-- commands, each with the number of its words before it. Those that begin with @ are made here, because they need a number that nobody
-- knows before, or maintain what follows from the rest.
-- Answers 1 when it is written, now or by an earlier try whose answer was lost; 0 when something changed meanwhile.

local token, prefix = KEYS[1], KEYS[2]
if redis.call('EXISTS', token) == 1 then
    return 1
end

local place = 1
local function word()
    place = place + 1
    return ARGV[place]
end

for _ = 1, tonumber(word()) do
    local key, field, expected = word(), word(), word()
    local found = redis.call('HGET', key, field)
    if (expected == '' and found) or (expected ~= '' and found ~= expected) then
        return 0
    end
end

local function number(counter)
    return string.format('%.0f', redis.call('HINCRBY', prefix .. 'meta', counter, 1))
end

-- An endpoint is looked at no later than then, unless it wants nothing or is left alone until later.
local function call_at(endpoint, at)
    local known = redis.call('HGET', prefix .. 'endpoints', endpoint)
    if not known then
        return
    end
    local row = cjson.decode(known)
    if type(row.disabled_at) == 'number' then
        return
    end
    if type(row.not_before) == 'number' and row.not_before > tonumber(at) then
        at = string.format('%.0f', row.not_before)
    end
    redis.call('ZADD', prefix .. 'calls', 'LT', at, endpoint)
end

-- The first pending message of a task is due.
local function open(task, endpoint, now)
    local first = redis.call('ZRANGE', prefix .. 'waiting:' .. task, 0, 0)[1]
    if first and redis.call('HSETNX', prefix .. 'due', first, now) == 1 then
        redis.call('ZADD', prefix .. 'due:' .. endpoint, now, first)
        call_at(endpoint, now)
    end
end

local skipped = 0
local ours = {
    -- An event gets its number. An output that was told before is not told again.
    ['@event'] = function(task, output, event)
        if output == '' or redis.call('SADD', prefix .. 'told:' .. task, output) == 1 then
            local seq = number('events')
            redis.call('XADD', prefix .. 'events', seq .. '-0', 'e', event)
            redis.call('RPUSH', prefix .. 'events:' .. task, seq)
        end
    end,
    -- So does a message to a webhook.
    ['@message'] = function(task, endpoint, at, message)
        local id = number('messages')
        redis.call('HSET', prefix .. 'messages', id, message)
        redis.call('ZADD', prefix .. 'log', id, id)
        redis.call('ZADD', prefix .. 'log:task:' .. task, id, id)
        redis.call('ZADD', prefix .. 'log:endpoint:' .. endpoint, id, id)
        redis.call('ZADD', prefix .. 'log:state:pending', id, id)
        redis.call('ZADD', prefix .. 'waiting:' .. task, id, id)
        redis.call('ZADD', prefix .. 'untold', at, id)
        open(task, endpoint, at)
    end,
    ['@open'] = open,
    ['@call'] = call_at,
    -- When an endpoint is looked at next: when its first message is due or, while as many as may be are on their way, when the first of
    -- those is taken to be lost.
    ['@refresh'] = function(endpoint, now, not_before, parallel)
        local sending, later = prefix .. 'sending:' .. endpoint, '(' .. now
        local first
        if parallel == '0' then
            first = nil
        elseif redis.call('ZCOUNT', sending, later, '+inf') >= tonumber(parallel) then
            first = redis.call('ZRANGEBYSCORE', sending, later, '+inf', 'WITHSCORES', 'LIMIT', 0, 1)[2]
        else
            first = redis.call('ZRANGE', prefix .. 'due:' .. endpoint, 0, 0, 'WITHSCORES')[2]
        end
        if first then
            local at = tonumber(first) > tonumber(not_before) and first or not_before
            redis.call('ZADD', prefix .. 'calls', at, endpoint)
        else
            redis.call('ZREM', prefix .. 'calls', endpoint)
        end
    end,
    -- Counts. While any are left, the commands that clear up after the last are passed over.
    ['@count'] = function(key, field, by, following)
        if redis.call('HINCRBY', key, field, by) > 0 then
            skipped = tonumber(following)
        else
            redis.call('HDEL', key, field)
        end
    end,
}

place = place + 1
while place <= #ARGV do
    local first = place + 1
    place = first + tonumber(ARGV[place])
    if skipped > 0 then
        skipped = skipped - 1
    elseif ours[ARGV[first]] then
        ours[ARGV[first]](unpack(ARGV, first + 1, place - 1))
    else
        redis.call(unpack(ARGV, first, place - 1))
    end
end

redis.call('SET', token, 1, 'PX', ARGV[1])
return 1
