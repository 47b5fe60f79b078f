# Sourced by tests/run: PostgreSQL, RabbitMQ, the OpenAI SDKs. Sets LUTHIER_TEST_POSTGRES_URL, LUTHIER_TEST_AMQP_URL.

OPENAI_PYTHON=3.54.0
# For the conformance kit alone: clients whose types and ways of sending are older.
OPENAI_PYTHON_OLD="1.109.1 2.54.0"
OPENAI_NODE=7.57.0
SCHEMATHESIS=4.32.5

apt_install() {
    command -v apt-get >/dev/null || { echo "needs $*: install them by hand, this is no Debian"; return 1; }
    local sudo=""
    [ "$(id -u)" = 0 ] || sudo=sudo
    DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y --no-install-recommends "$@" >"$log/apt.log" 2>&1 ||
        { $sudo apt-get update >>"$log/apt.log" 2>&1 &&
            DEBIAN_FRONTEND=noninteractive $sudo apt-get install -y --no-install-recommends "$@" >>"$log/apt.log" 2>&1; } ||
        { tail -n 20 "$log/apt.log"; return 1; }
}

wait_for() { # SECONDS COMMAND…: until the command succeeds
    local limit=$1
    shift
    for _ in $(seq "$limit"); do
        "$@" >/dev/null 2>&1 && return 0
        sleep 1
    done
    return 1
}

port_open() { (exec 3<>"/dev/tcp/127.0.0.1/$1") 2>/dev/null; }

postgres_answers() { psql "$LUTHIER_TEST_POSTGRES_URL" -Atqc 'select 1'; }

# Uses the server at LUTHIER_TEST_POSTGRES_URL or on the standard port; else runs one of its own on port 55432.
start_postgres() {
    command -v psql >/dev/null || apt_install postgresql-client
    export LUTHIER_TEST_POSTGRES_URL=${LUTHIER_TEST_POSTGRES_URL:-postgres://$(id -un)@127.0.0.1:5432/postgres}
    postgres_answers >/dev/null 2>&1 && return 0
    export LUTHIER_TEST_POSTGRES_URL=postgres://postgres@127.0.0.1:55432/postgres
    postgres_answers >/dev/null 2>&1 && return 0
    ls /usr/lib/postgresql/*/bin/initdb >/dev/null 2>&1 || apt_install postgresql
    local bin dir=/var/tmp/luthier-tests/postgres as=""
    bin=$(dirname "$(ls -d /usr/lib/postgresql/*/bin/initdb | sort -V | tail -n 1)")
    mkdir -p "$dir"
    # PostgreSQL refuses to run as root.
    [ "$(id -u)" = 0 ] && { chown -R postgres "$dir"; as="setpriv --reuid postgres --regid postgres --clear-groups"; }
    [ -f "$dir/PG_VERSION" ] || (cd / && $as "$bin/initdb" -D "$dir" -U postgres -A trust >"$log/initdb.log" 2>&1)
    (cd / && $as "$bin/pg_ctl" -D "$dir" -w -l "$dir/log" \
        -o "-p 55432 -c listen_addresses=127.0.0.1 -c unix_socket_directories=$dir" start) >"$log/pg_ctl.log" 2>&1
    wait_for 30 postgres_answers || { cat "$log/pg_ctl.log"; echo "PostgreSQL does not start"; return 1; }
}

# amqp_answers PORT: whether a broker greets there; one that has run out of memory or files lets a client in and says nothing.
amqp_answers() {
    [ "$( (exec 3<>"/dev/tcp/127.0.0.1/$1" && printf 'AMQP\0\0\11\1' >&3 && timeout 5 head -c 1 <&3 | od -An -tx1) 2>/dev/null)" = " 01" ]
}

# Uses the broker at LUTHIER_TEST_AMQP_URL or on the standard port; else starts Debian's, on port 35672 where the standard one is taken.
start_rabbitmq() {
    [ -n "${LUTHIER_TEST_AMQP_URL:-}" ] && return 0
    local port=5672 dir=/var/tmp/luthier-tests/rabbitmq
    if port_open $port; then
        wait_for 10 amqp_answers $port || { port=35672 && echo "nobody speaks AMQP on port 5672: a broker of the tests' own on $port"; }
    fi
    export LUTHIER_TEST_AMQP_URL=amqp://guest:guest@127.0.0.1:$port/%2f
    amqp_answers $port && return 0
    command -v rabbitmq-server >/dev/null || [ -x /usr/sbin/rabbitmq-server ] || apt_install rabbitmq-server
    if [ $port = 5672 ]; then
        port_open $port || PATH=$PATH:/usr/sbin rabbitmq-server -detached >"$log/rabbitmq.log" 2>&1
    else
        mkdir -p "$dir"
        chown -R rabbitmq "$dir" 2>/dev/null || true
        PATH=$PATH:/usr/sbin RABBITMQ_NODENAME=luthier-tests@localhost RABBITMQ_NODE_PORT=$port RABBITMQ_NODE_IP_ADDRESS=127.0.0.1 \
            RABBITMQ_CONFIG_FILE="$dir/none" RABBITMQ_MNESIA_BASE=$dir RABBITMQ_LOG_BASE=$dir rabbitmq-server -detached >"$log/rabbitmq.log" 2>&1
    fi
    wait_for 90 amqp_answers $port || { cat "$log/rabbitmq.log"; echo "RabbitMQ does not start"; return 1; }
}

install_python_sdk() {
    local venv=$tools/venv stamp=$tools/venv/.openai-$OPENAI_PYTHON-schemathesis-$SCHEMATHESIS
    [ -f "$stamp" ] && return 0
    python3 -c 'import ensurepip, venv' 2>/dev/null || apt_install python3-venv
    python3 -m venv "$venv"
    "$venv/bin/pip" install --quiet "openai==$OPENAI_PYTHON" jsonschema==4.26.0 pyyaml==6.0.3 "schemathesis==$SCHEMATHESIS" >"$log/pip.log" 2>&1 ||
        { tail -n 20 "$log/pip.log"; return 1; }
    touch "$stamp"
}

install_old_python_sdks() {
    local version venv
    for version in $OPENAI_PYTHON_OLD; do
        venv=$tools/openai-$version
        [ -f "$venv/.installed" ] && continue
        python3 -m venv "$venv"
        "$venv/bin/pip" install --quiet "openai==$version" jsonschema==4.26.0 pyyaml==6.0.3 >"$log/pip.log" 2>&1 ||
            { tail -n 20 "$log/pip.log"; return 1; }
        touch "$venv/.installed"
    done
}

install_node_sdk() {
    local dir=$tools/node
    [ -f "$dir/node_modules/.openai-$OPENAI_NODE" ] && return 0
    command -v npm >/dev/null || apt_install nodejs npm
    mkdir -p "$dir"
    npm install --prefix "$dir" --no-audit --no-fund --silent "openai@$OPENAI_NODE" >"$log/npm.log" 2>&1 ||
        { tail -n 20 "$log/npm.log"; return 1; }
    touch "$dir/node_modules/.openai-$OPENAI_NODE"
}

start_services() {
    command -v cc >/dev/null || apt_install build-essential
    command -v curl >/dev/null || apt_install curl
    start_postgres
    start_rabbitmq
    install_python_sdk
    install_old_python_sdks
    install_node_sdk
    echo "PostgreSQL $LUTHIER_TEST_POSTGRES_URL"
    echo "RabbitMQ   ${LUTHIER_TEST_AMQP_URL%%:*}://…@${LUTHIER_TEST_AMQP_URL##*@}"
}
