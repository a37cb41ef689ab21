#!/bin/sh
# SeaweedFS with two identities, each with a bucket of its own: who holds the tasks' keys cannot touch the models.
# Run by deploy/seaweedfs.yaml and mlflow/compose.yaml; arguments are options of `weed server`.
set -eu

for name in TASKS_ACCESS_KEY TASKS_SECRET_KEY MODELS_ACCESS_KEY MODELS_SECRET_KEY; do
  eval "value=\${$name:-}"
  case "$value" in
    "" | *[!A-Za-z0-9+/=_-]*)
      echo "error: $name is empty, or holds other characters than letters, digits and + / = _ -; set it anew" >&2
      exit 1
      ;;
  esac
done

config=$(mktemp)
identity() {
  printf '{"name": "%s", "credentials": [{"accessKey": "%s", "secretKey": "%s"}],' "$1" "$3" "$4"
  printf ' "actions": ["Read:%s", "Write:%s", "List:%s", "Tagging:%s"]}' "$2" "$2" "$2" "$2"
}
{
  printf '{"identities": ['
  identity tasks contrique "$TASKS_ACCESS_KEY" "$TASKS_SECRET_KEY"
  printf ', '
  identity models contrique-models "$MODELS_ACCESS_KEY" "$MODELS_SECRET_KEY"
  printf ']}\n'
} > "$config"
unset TASKS_ACCESS_KEY TASKS_SECRET_KEY MODELS_ACCESS_KEY MODELS_SECRET_KEY

# Neither identity may make a bucket, so they are made from within.
shell="weed shell -master=127.0.0.1:${MASTER_PORT:-9333}"
for bucket in contrique contrique-models; do
  until echo s3.bucket.list | $shell 2> /dev/null | grep -q "^ *$bucket[^-]"; do
    echo "s3.bucket.create -name $bucket" | $shell > /dev/null 2>&1 || true
    sleep 1
  done
done &

exec weed -logtostderr=true server -s3 -s3.config="$config" "$@"
