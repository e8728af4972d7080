// Makes databases with bbolt itself, says what is in one, and writes to one without pause.
//
// Usage: bolt make DIR | bolt dump FILE | bolt write FILE | bolt pairs FILE COUNT BYTES
package main

import (
	"bufio"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"math/rand"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	bolt "go.etcd.io/bbolt"
)

func main() {
	if len(os.Args) == 5 && os.Args[1] == "pairs" {
		if err := pairs(os.Args[2], os.Args[3], os.Args[4]); err != nil {
			fmt.Fprintln(os.Stderr, "bolt:", err)
			os.Exit(1)
		}
		return
	}
	if len(os.Args) != 3 {
		fmt.Fprintln(os.Stderr, "usage: bolt make DIR | bolt dump FILE | bolt write FILE | bolt pairs FILE COUNT BYTES")
		os.Exit(2)
	}
	do := map[string]func(string) error{"make": makeAll, "dump": dump, "write": write}[os.Args[1]]
	if do == nil {
		fmt.Fprintln(os.Stderr, "bolt:", os.Args[1]+": not a command")
		os.Exit(2)
	}
	if err := do(os.Args[2]); err != nil {
		fmt.Fprintln(os.Stderr, "bolt:", err)
		os.Exit(1)
	}
}

// A shape is a database: how it is opened, and its transactions.
type shape struct {
	name    string
	options bolt.Options
	steps   []func(*bolt.Tx) error
}

func shapes() []shape {
	none := bolt.Options{}
	all := []shape{
		{"empty", none, nil},
		{"one-more", none, []func(*bolt.Tx) error{small}},
		{"two-more", none, []func(*bolt.Tx) error{small, again}},
		{"inline", none, []func(*bolt.Tx) error{small, inline}},
		{"overflow", none, []func(*bolt.Tx) error{overflow}},
		{"nested", none, []func(*bolt.Tx) error{nested}},
		{"deep", none, many(120_000, 10_000)},
		{"deleted", none, append(many(40_000, 10_000), thin, small, dropped)},
		{"no-freelist", bolt.Options{NoFreelistSync: true}, append(many(4_000, 1_000), thin)},
		{"damage", bolt.Options{PageSize: 1024}, []func(*bolt.Tx) error{damage}},
	}
	for _, size := range []int{1024, 4096, 16384, 65536} {
		steps := append(many(20_000, 5_000), overflow, nested, inline, thin)
		all = append(all, shape{fmt.Sprintf("pages-%d", size), bolt.Options{PageSize: size}, steps})
	}
	return all
}

func makeAll(dir string) error {
	for _, shape := range shapes() {
		if err := shape.make(filepath.Join(dir, shape.name+".db")); err != nil {
			return fmt.Errorf("%s: %w", shape.name, err)
		}
	}
	return states(dir)
}

func (s shape) make(path string) error {
	s.options.NoSync = true
	db, err := bolt.Open(path, 0o600, &s.options)
	if err != nil {
		return err
	}
	defer db.Close()
	for _, step := range s.steps {
		if err := db.Update(step); err != nil {
			return err
		}
	}
	return nil
}

// One database after each of its transactions.
func states(dir string) error {
	path := filepath.Join(dir, "states")
	db, err := bolt.Open(path, 0o600, &bolt.Options{NoSync: true})
	if err != nil {
		return err
	}
	defer db.Close()
	defer os.Remove(path)
	for state := range uint64(6) {
		if err := db.Update(func(tx *bolt.Tx) error { return stamp(tx, state, 20_000) }); err != nil {
			return err
		}
		copied := filepath.Join(dir, fmt.Sprintf("state-%d.db", state))
		bytes, err := os.ReadFile(path)
		if err == nil {
			err = os.WriteFile(copied, bytes, 0o600)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// The same number under every key: of two states together, not all are the same.
func stamp(tx *bolt.Tx, number uint64, keys int) error {
	bucket, err := tx.CreateBucketIfNotExists([]byte("stamped"))
	if err != nil {
		return err
	}
	value := binary.BigEndian.AppendUint64(nil, number)
	for key := range keys {
		if err := bucket.Put(fmt.Appendf(nil, "key %08d", key), value); err != nil {
			return err
		}
	}
	return nil
}

// Stamps until standard input ends; says when the first stamp is there.
func write(path string) error {
	db, err := bolt.Open(path, 0o600, &bolt.Options{NoSync: true})
	if err != nil {
		return err
	}
	defer db.Close()
	ended := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	for number := uint64(0); ; number++ {
		if err := db.Update(func(tx *bolt.Tx) error { return stamp(tx, number, 2_000) }); err != nil {
			return err
		}
		if number == 0 {
			fmt.Println("stamped")
		}
		select {
		case <-ended:
			return nil
		default:
		}
	}
}

// Writes what containerd would of so many images, some of them there and some not, until its input ends. An image is two
// records, far from each other, with a label of so many bytes, and a blob: all three come and go in one transaction.
func pairs(path, count, size string) error {
	total, err := strconv.Atoi(count)
	if err != nil {
		return err
	}
	bytes, err := strconv.Atoi(size)
	if err != nil {
		return err
	}
	db, err := bolt.Open(path, 0o600, &bolt.Options{NoSync: true})
	if err != nil {
		return err
	}
	defer db.Close()
	padding := []byte(strings.Repeat("x", bytes))
	if err := db.Update(func(tx *bolt.Tx) error {
		for index := 0; index < total; index += 2 {
			if err := turn(tx, index, padding); err != nil {
				return err
			}
		}
		return nil
	}); err != nil {
		return err
	}
	fmt.Println("written!")
	ended := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin)
		close(ended)
	}()
	random := rand.New(rand.NewSource(1))
	for {
		select {
		case <-ended:
			return nil
		default:
		}
		err := db.Update(func(tx *bolt.Tx) error {
			for range 1 + random.Intn(3) {
				if err := turn(tx, random.Intn(total), padding); err != nil {
					return err
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
}

// Makes an image, or deletes it if it is there.
func turn(tx *bolt.Tx, index int, padding []byte) error {
	version, err := tx.CreateBucketIfNotExists([]byte("v1"))
	if err != nil {
		return err
	}
	if err := version.Put([]byte("version"), binary.AppendVarint(nil, 3)); err != nil {
		return err
	}
	images, err := within(version, "pairs", "images")
	if err != nil {
		return err
	}
	blobs, err := within(version, "pairs", "content", "blob")
	if err != nil {
		return err
	}
	digest := fmt.Appendf(nil, "sha256:%064x", index)
	names := [][]byte{fmt.Appendf(nil, "a-%06d", index), fmt.Appendf(nil, "z-%06d", index)}
	if images.Bucket(names[0]) != nil {
		return errors.Join(images.DeleteBucket(names[0]), images.DeleteBucket(names[1]), blobs.DeleteBucket(digest))
	}
	for _, name := range names {
		target, err := within(images, string(name), "target")
		if err != nil {
			return err
		}
		labels, err := within(images, string(name), "labels")
		if err != nil {
			return err
		}
		err = errors.Join(target.Put([]byte("digest"), digest), target.Put([]byte("mediatype"), []byte("none")),
			target.Put([]byte("size"), binary.AppendVarint(nil, 1)), labels.Put([]byte("padding"), padding))
		if err != nil {
			return err
		}
	}
	blob, err := blobs.CreateBucket(digest)
	if err != nil {
		return err
	}
	return blob.Put([]byte("size"), binary.AppendVarint(nil, 1))
}

func within(bucket *bolt.Bucket, names ...string) (*bolt.Bucket, error) {
	for _, name := range names {
		below, err := bucket.CreateBucketIfNotExists([]byte(name))
		if err != nil {
			return nil, err
		}
		bucket = below
	}
	return bucket, nil
}

func small(tx *bolt.Tx) error {
	for _, name := range []string{"a", "b", "c"} {
		bucket, err := tx.CreateBucketIfNotExists([]byte(name))
		if err != nil {
			return err
		}
		if err := bucket.Put([]byte("key"), []byte("of "+name)); err != nil {
			return err
		}
		if err := bucket.Put([]byte("nothing"), nil); err != nil {
			return err
		}
	}
	return nil
}

func again(tx *bolt.Tx) error {
	return tx.Bucket([]byte("b")).Put([]byte("key"), []byte("changed"))
}

// Buckets in values: empty, with a sequence, in each other as far as bbolt goes, and one just too large.
func inline(tx *bolt.Tx) error {
	top, err := tx.CreateBucketIfNotExists([]byte("inline"))
	if err != nil {
		return err
	}
	for index := range 40 {
		bucket, err := top.CreateBucket(fmt.Appendf(nil, "bucket %02d", index))
		if err != nil {
			return err
		}
		if err := bucket.SetSequence(uint64(index) << 40); err != nil {
			return err
		}
		for key := range index * 3 {
			if err := bucket.Put(fmt.Appendf(nil, "%03d", key), []byte(strings.Repeat("x", index))); err != nil {
				return err
			}
		}
	}
	return nil
}

// Values and keys that take more than a page.
func overflow(tx *bolt.Tx) error {
	bucket, err := tx.CreateBucketIfNotExists([]byte("overflow"))
	if err != nil {
		return err
	}
	random := rand.New(rand.NewSource(1))
	for _, length := range []int{1, 1000, 4064, 4080, 4096, 5000, 70_000, 1_000_000, 3_000_000} {
		value := make([]byte, length)
		random.Read(value)
		if err := bucket.Put(fmt.Appendf(nil, "value %d", length), value); err != nil {
			return err
		}
	}
	for index := range 20 {
		key := strings.Repeat(string(rune('a'+index)), bolt.MaxKeySize-index)
		if err := bucket.Put([]byte(key), []byte("long key")); err != nil {
			return err
		}
	}
	return nil
}

// Buckets in buckets, five deep, each with values too.
func nested(tx *bolt.Tx) error {
	top, err := tx.CreateBucketIfNotExists([]byte("nested"))
	if err != nil {
		return err
	}
	return nest(top, 5)
}

func nest(bucket *bolt.Bucket, depth int) error {
	for key := range 30 {
		if err := bucket.Put(fmt.Appendf(nil, "key %d", key), []byte(strings.Repeat("v", depth*key))); err != nil {
			return err
		}
	}
	for child := range depth {
		below, err := bucket.CreateBucket(fmt.Appendf(nil, "level %d %d", depth, child))
		if err == nil {
			err = nest(below, depth-1)
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// Keys of many lengths, in no order, some at a time.
func many(keys, each int) []func(*bolt.Tx) error {
	random := rand.New(rand.NewSource(2))
	order := random.Perm(keys)
	var steps []func(*bolt.Tx) error
	for len(order) > 0 {
		part := order[:min(each, len(order))]
		order = order[len(part):]
		steps = append(steps, func(tx *bolt.Tx) error {
			bucket, err := tx.CreateBucketIfNotExists([]byte("many"))
			if err != nil {
				return err
			}
			for _, key := range part {
				name := fmt.Sprintf("%x-%s", uint32(key)*2654435761, strings.Repeat("k", key%60))
				if err := bucket.Put([]byte(name), fmt.Append(nil, key)); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return steps
}

// Deletes two of three.
func thin(tx *bolt.Tx) error {
	bucket := tx.Bucket([]byte("many"))
	var gone [][]byte
	index := 0
	err := bucket.ForEach(func(key, _ []byte) error {
		if index++; index%3 != 0 {
			gone = append(gone, append([]byte(nil), key...))
		}
		return nil
	})
	for _, key := range gone {
		if err == nil {
			err = bucket.Delete(key)
		}
	}
	return err
}

func dropped(tx *bolt.Tx) error {
	return tx.DeleteBucket([]byte("a"))
}

// Small, and something of everything: to be damaged at every byte.
func damage(tx *bolt.Tx) error {
	top, err := tx.CreateBucketIfNotExists([]byte("top"))
	if err != nil {
		return err
	}
	for key := range 60 {
		if err := top.Put(fmt.Appendf(nil, "key %03d", key), []byte(strings.Repeat("v", key))); err != nil {
			return err
		}
	}
	if err := top.Put([]byte("large"), []byte(strings.Repeat("large", 600))); err != nil {
		return err
	}
	for index := range 3 {
		bucket, err := top.CreateBucket(fmt.Appendf(nil, "small %d", index))
		if err == nil {
			err = bucket.Put([]byte("in a value"), []byte("yes"))
		}
		if err != nil {
			return err
		}
	}
	below, err := top.CreateBucket([]byte("below"))
	if err != nil {
		return err
	}
	for key := range 80 {
		if err := below.Put(fmt.Appendf(nil, "%03d", key), []byte("a value of some bytes")); err != nil {
			return err
		}
	}
	last, err := below.CreateBucket([]byte("last"))
	if err != nil {
		return err
	}
	return last.Put([]byte("key"), []byte(strings.Repeat("too large for a value", 20)))
}

// Everything in order, a line a key, a line where a bucket begins and ends.
func dump(path string) error {
	db, err := bolt.Open(path, 0o400, &bolt.Options{ReadOnly: true})
	if err != nil {
		return err
	}
	defer db.Close()
	out := bufio.NewWriter(os.Stdout)
	defer out.Flush()
	return db.View(func(tx *bolt.Tx) error {
		fmt.Fprintln(out, "transaction", tx.ID())
		return list(out, tx.Cursor().Bucket())
	})
}

func list(out io.Writer, bucket *bolt.Bucket) error {
	return bucket.ForEach(func(key, value []byte) error {
		if value != nil {
			_, err := fmt.Fprintln(out, "value", hex.EncodeToString(key), hex.EncodeToString(value))
			return err
		}
		below := bucket.Bucket(key)
		fmt.Fprintln(out, "bucket", hex.EncodeToString(key), below.Sequence())
		if err := list(out, below); err != nil {
			return err
		}
		_, err := fmt.Fprintln(out, "end")
		return err
	})
}
